"""Tables of teams, people, their keys and how they sign in; and what all tables are made of.

Others import them from `database/tables`, which has every table.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
)

# one name for each constraint on both databases: a migration can only change what it can name
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Timestamp(TypeDecorator[datetime]):
    """An aware datetime, stored as UTC in both databases."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], Any] | None:
        """For SQLite in one call: SQLAlchemy's own takes several, and a page of history has a hundred moments."""
        return _to_sqlite if dialect.name == "sqlite" else super().bind_processor(dialect)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None] | None:
        """As `bind_processor`."""
        return _from_sqlite if dialect.name == "sqlite" else super().result_processor(dialect, coltype)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's form
        """`value` in UTC: SQLite would drop the zone of any other."""
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's form
        """`value` as an aware datetime: SQLite has stored it without its zone, which was UTC."""
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


def _to_sqlite(value: datetime | None) -> str | None:
    # as SQLAlchemy writes it: `2026-03-14 08:09:21.920000`
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds") if value else None


def _from_sqlite(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).replace(tzinfo=UTC) if text else None


#: An id that both databases count up: SQLite does so for INTEGER only, where it has 64 bits anyway.
Counter = BigInteger().with_variant(Integer, "sqlite")
#: A UUID as text: SQLite has no type of its own for it.
Id = String(36)


def new_id() -> str:
    """A new id for a row: a random UUID (version 4), 36 characters."""
    return str(uuid4())


#: `used_credit` is what was used in the budget window called `window_label` (`accounts/credits` writes both).
teams = Table(
    "teams",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("status", String(16), nullable=False),
    Column("credit_limit", BigInteger, nullable=False),
    Column("used_credit", BigInteger, nullable=False),
    Column("budget_window", String(8), nullable=False),
    Column("window_label", String(10), nullable=False),
    Column("may_disable_safety", Boolean, nullable=False),
    Column("may_disable_watermark", Boolean, nullable=False, server_default=false()),
    Column("created_at", Timestamp, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
)
#: People. What they may do and use is in `members`, once for each of their teams. An `operator` manages the server.
users = Table(
    "users",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("avatar", Text),
    Column("operator", Boolean, nullable=False, server_default=false()),
    Column("created_at", Timestamp, nullable=False),
)
#: A user in a team, with a counter as the team's.
members = Table(
    "members",
    metadata,
    Column("team_id", Id, ForeignKey("teams.id"), primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("role", String(16), nullable=False),
    Column("credit_limit", BigInteger, nullable=False),
    Column("used_credit", BigInteger, nullable=False),
    Column("budget_window", String(8), nullable=False),
    Column("window_label", String(10), nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    Column("updated_by", String(200), nullable=False),
)
#: API keys, as the SHA-256 `digest` of each. `prefix` is what lists show; `scopes` are separated by commas.
#: `used_at` is some seconds behind (`accounts/last_uses`); `note` says what a migration has changed about the key.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Id, primary_key=True),
    Column("team_id", Id, ForeignKey("teams.id"), nullable=False),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    Column("name", String(200), nullable=False),
    Column("prefix", String(16), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("scopes", String(100), nullable=False),
    Column("rate_limit", String(100)),
    Column("created_at", Timestamp, nullable=False),
    Column("expires_at", Timestamp),
    Column("revoked_at", Timestamp),
    Column("used_at", Timestamp),
    Column("note", String(300)),
    Index("ix_api_keys_team", "team_id"),
    Index("ix_api_keys_user", "user_id"),
)
#: What a user signs in with beside keys: a name in its folded form (`accounts/passwords`) and the password's hash.
logins = Table(
    "logins",
    metadata,
    Column("user_id", Id, ForeignKey("users.id"), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("password_hash", String(300), nullable=False),
    Column("updated_at", Timestamp, nullable=False),
)
#: Who a user is to an OpenID provider: `subject` never changes there, and is unique within its `issuer`.
identities = Table(
    "identities",
    metadata,
    Column("issuer", String(500), primary_key=True),
    Column("subject", String(255), primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    Column("email", String(320)),
    Column("created_at", Timestamp, nullable=False),
    Index("ix_identities_user", "user_id"),
)
#: Browsers that are signed in, as the SHA-256 `digest` of each cookie. With `key_id`, a session may what that key may,
#: and dies with it; without, what its user may. `method` is `key`, `password` or `oidc`.
sessions = Table(
    "sessions",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("id", Id, nullable=False, unique=True),
    Column("team_id", Id, ForeignKey("teams.id"), nullable=False),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    Column("key_id", Id, ForeignKey("api_keys.id")),
    Column("method", String(16), nullable=False),
    Column("browser", String(100), nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("expires_at", Timestamp, nullable=False),
    Index("ix_sessions_user", "user_id"),
    Index("ix_sessions_expires", "expires_at"),
)
#: Links that administrators have made, as the SHA-256 `digest` of each secret. Without `user_id` one makes a new member
#: of the team; with it, that member chooses a password anew. `created_by_id` is the user who has made it, None on the
#: command line: a link is worth no more than its maker is when it is used.
invites = Table(
    "invites",
    metadata,
    Column("id", Id, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("team_id", Id, ForeignKey("teams.id"), nullable=False),
    Column("user_id", Id, ForeignKey("users.id")),
    Column("user_name", String(200), nullable=False),
    Column("role", String(16), nullable=False),
    Column("credit_limit", BigInteger),
    Column("budget_window", String(8), nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("created_by_id", Id, ForeignKey("users.id")),
    Column("created_at", Timestamp, nullable=False),
    Column("expires_at", Timestamp, nullable=False),
    Column("accepted_at", Timestamp),
    Column("revoked_at", Timestamp),
    Index("ix_invites_team", "team_id"),
)
#: What administrators and operators did (`accounts/audit`). Append-only, and names stand here as they were: no row
#: points to another that may change or go.
audit = Table(
    "audit",
    metadata,
    Column("id", Counter, primary_key=True, autoincrement=True),
    Column("created_at", Timestamp, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("actor_id", Id),
    Column("via", String(16), nullable=False),
    Column("team_id", Id),
    Column("action", String(40), nullable=False),
    Column("target", String(300), nullable=False),
    Column("target_id", String(100)),
    Column("details", JSON, nullable=False),
    Index("ix_audit_team", "team_id", "id"),
    Index("ix_audit_created", "created_at"),
)
#: What `sessions` took the place of. Nothing reads it any more but servers of the version before, which may still run
#: beside this one during a rolling restart.
ended_sessions = Table(
    "ended_sessions",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("expires_at", Timestamp, nullable=False),
    Index("ix_ended_sessions_expires", "expires_at"),
)
