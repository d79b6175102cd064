"""Teams, their members, API keys, and the caller who sent one: values without behaviour."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

Role = Literal["ADMIN", "MEMBER"]
Status = Literal["ACTIVE", "INACTIVE"]
Scope = Literal["generate", "read", "admin"]
BudgetWindow = Literal["none", "day", "month"]
#: What a key may be used for: to generate, to read records and the account, to manage every team (`admin`).
SCOPES: Final[tuple[Scope, ...]] = ("generate", "read", "admin")
DEFAULT_SCOPES: Final[tuple[Scope, ...]] = ("generate", "read")
DEFAULT_CREDIT_LIMIT: Final = 100_000_000
#: Who has made or changed a member when no user did: the command line, or the server itself.
SYSTEM: Final = "SYSTEM"


@dataclass(frozen=True, slots=True)
class Team:
    """A team and its budget, in credits. `used_credit` starts again from zero with each day or month, or never.

    `may_disable_safety`: whether its requests may switch the safety check off; `may_disable_watermark`: whether they
    may ask for pictures without the invisible mark.
    """

    id: str
    name: str
    status: Status
    credit_limit: int
    used_credit: int
    budget_window: BudgetWindow
    may_disable_safety: bool
    may_disable_watermark: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Member:
    """A user in a team, with a budget of their own within the team's."""

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
    """An API key without its secret: `prefix` is its beginning. `rate_limit` is such as `60/minute`, or None."""

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
    """Who sent a request, by the key that came with it, and what they may do.

    `team_name` and `key_prefix` (the key's first characters) are for logs and metrics.
    """

    team_id: str
    user_id: str
    user_name: str
    key_id: str
    role: Role
    scopes: tuple[Scope, ...]
    rate_limit: str | None = None
    may_disable_safety: bool = True
    may_disable_watermark: bool = False
    team_name: str = ""
    key_prefix: str = ""
