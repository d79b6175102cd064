"""Teams, their members, API keys, and the caller who sent one: values without behaviour."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

Role = Literal["ADMIN", "MEMBER"]
Status = Literal["ACTIVE", "INACTIVE"]
Scope = Literal["generate", "read", "admin", "operator"]
BudgetWindow = Literal["none", "day", "month"]
#: What a key may be used for: to generate, to read records and the account, to manage its own team (`admin`), to manage
#: the server with all its teams (`operator`).
SCOPES: Final[tuple[Scope, ...]] = ("generate", "read", "admin", "operator")
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
    """A user in a team, with a budget of their own within the team's. An `operator` may manage the whole server."""

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
    operator: bool = False

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """What this member may do at most."""
        return scopes_of(self.role, operator=self.operator)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key without its secret: `prefix` is its beginning. `rate_limit` is such as `60/minute`, or None.

    It belongs to the member `user_id`, called `user_name`. `used_at` is some seconds behind. `note` says what an
    upgrade of the server has changed about the key.
    """

    id: str
    team_id: str
    user_id: str
    user_name: str
    name: str
    prefix: str
    scopes: tuple[Scope, ...]
    rate_limit: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and what they may do: with an API key, or in a session of a browser, or both.

    `key_id` is the key that came with the request, or that the session was made with; None in a session that was made
    with a password or by an OpenID provider. `is_owner`: whether they may change how its member signs in, and the
    member's keys; a key that may less than its member, expires, or has a rate limit was lent, and may not. `lent`: it
    expires or has a limit. `team_name` and `key_prefix` (the key's first
    characters) are for logs and metrics.
    """

    team_id: str
    user_id: str
    user_name: str
    key_id: str | None
    role: Role
    scopes: tuple[Scope, ...]
    rate_limit: str | None = None
    may_disable_safety: bool = True
    may_disable_watermark: bool = False
    team_name: str = ""
    key_prefix: str = ""
    session_id: str | None = None
    is_owner: bool = False
    lent: bool = False

    @property
    def counted_as(self) -> str:
        """What requests are counted by, and choices kept by: the key, or without one the user."""
        return self.key_id or self.user_id

    @property
    def is_operator(self) -> bool:
        """Whether they may manage every team and the server."""
        return "operator" in self.scopes


def scopes_of(role: Role, *, operator: bool) -> tuple[Scope, ...]:
    """What a member with this role may do at most; no key of theirs does more.

    An operator may everything, in every team, whatever their role in their own.
    """
    if operator:
        return SCOPES
    return ("generate", "read", "admin") if role == "ADMIN" else ("generate", "read")
