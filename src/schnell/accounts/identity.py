"""Who is asking: teams, users, their membership, their keys."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

Role = Literal["ADMIN", "MEMBER"]
Status = Literal["ACTIVE", "INACTIVE"]
Scope = Literal["generate", "read", "admin"]
BudgetWindow = Literal["none", "day", "month"]
SCOPES: Final[tuple[Scope, ...]] = ("generate", "read", "admin")
DEFAULT_SCOPES: Final[tuple[Scope, ...]] = ("generate", "read")
DEFAULT_CREDIT_LIMIT: Final = 100_000_000
SYSTEM: Final = "SYSTEM"


@dataclass(frozen=True, slots=True)
class Team:
    """A team and its budget, in credits. `budget_window` says when `used_credit` starts again from zero."""

    id: str
    name: str
    status: Status
    credit_limit: int
    used_credit: int
    budget_window: BudgetWindow
    may_disable_safety: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Member:
    """A user within a team, with a budget of their own."""

    team_id: str
    user_id: str
    user_name: str
    user_avatar: str | None
    status: Status
    role: Role
    credit_limit: int
    used_credit: int
    budget_window: BudgetWindow
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it may be shown: its prefix, never the key."""

    id: str
    team_id: str
    user_id: str
    name: str
    prefix: str
    scopes: tuple[Scope, ...]
    rate_limit: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of the key that came with a request, and what they may do."""

    team_id: str
    user_id: str
    user_name: str
    key_id: str
    role: Role
    scopes: tuple[Scope, ...]
    rate_limit: str | None = None
    may_disable_safety: bool = True
