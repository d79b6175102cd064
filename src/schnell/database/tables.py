"""Every table of the database. Times are UTC; limits, costs and amounts are whole credits; sizes are bytes.

A change here needs a migration (`database/migrations`); a test compares the two.
"""

from datetime import UTC, datetime
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
    UniqueConstraint,
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

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's form
        """`value` in UTC: SQLite would drop the zone of any other."""
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's form
        """`value` as an aware datetime: SQLite has stored it without its zone, which was UTC."""
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


#: An id that both databases count up: SQLite does so for INTEGER only, where it has 64 bits anyway.
_Counter = BigInteger().with_variant(Integer, "sqlite")
#: A UUID as text: SQLite has no type of its own for it.
_Id = String(36)


def new_id() -> str:
    """A new id for a row: a random UUID (version 4), 36 characters."""
    return str(uuid4())


#: `used_credit` is what was used in the budget window called `window_label` (`accounts/credits` writes both).
teams = Table(
    "teams",
    metadata,
    Column("id", _Id, primary_key=True),
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
    Column("id", _Id, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("avatar", Text),
    Column("operator", Boolean, nullable=False, server_default=false()),
    Column("created_at", Timestamp, nullable=False),
)
#: A user in a team, with a counter as the team's.
members = Table(
    "members",
    metadata,
    Column("team_id", _Id, ForeignKey("teams.id"), primary_key=True),
    Column("user_id", _Id, ForeignKey("users.id"), primary_key=True),
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
    Column("id", _Id, primary_key=True),
    Column("team_id", _Id, ForeignKey("teams.id"), nullable=False),
    Column("user_id", _Id, ForeignKey("users.id"), nullable=False),
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
#: Append-only. `team_window` and `member_window` are the day of the row's reservation; the sum of `amount` over the
#: days of a member's (or team's) current window is its `used_credit`, see `accounts/credits`. `record_id` is no foreign
#: key: records are deleted one day, the rows of the ledger never are. `day` is what usage is reported by.
ledger = Table(
    "ledger",
    metadata,
    Column("id", _Counter, primary_key=True, autoincrement=True),
    Column("team_id", _Id, nullable=False),
    Column("user_id", _Id, nullable=False),
    Column("key_id", _Id),
    Column("record_id", _Id, nullable=False),
    Column("kind", String(8), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("team_window", String(10), nullable=False),
    Column("member_window", String(10), nullable=False),
    Column("pictures", Integer, nullable=False),
    Column("day", String(10), nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Index("ix_ledger_team_user", "team_id", "user_id"),
    # a team's usage by day
    Index("ix_ledger_team_day", "team_id", "day"),
    Index("ix_ledger_record", "record_id"),
    Index("ix_ledger_day", "day"),
)
#: Servers that share this database, while they live: see `generations/servers`.
servers = Table(
    "servers",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("label", String(100), nullable=False),
    Column("host", String(255), nullable=False),
    Column("boot", String(100), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", Timestamp, nullable=False),
    Column("held_since", Timestamp, nullable=False),
    Column("expires_at", Timestamp, nullable=False),
)
#: One row for each generation. It ends once: `status` goes from QUEUED and PROCESSING to SUCCESS or FAILURE.
#: `instance` is the id of the server that draws the record.
records = Table(
    "records",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("team_id", _Id, nullable=False),
    Column("user_id", _Id, nullable=False),
    Column("key_id", _Id),
    Column("instance", String(100), nullable=False),
    Column("dialect", String(32), nullable=False),
    Column("type", String(64), nullable=False),
    Column("model", String(200), nullable=False),
    Column("status", String(16), nullable=False),
    Column("prompt_object", JSON, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("response_object", JSON, nullable=False),
    Column("receipts", JSON, nullable=False),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("cost", BigInteger, nullable=False),
    Column("rating", Integer),
    Column("feedback", Text),
    Column("conversation_id", String(200)),
    Column("metadata", JSON),
    Column("created_at", Timestamp, nullable=False),
    Column("started_at", Timestamp),
    Column("finished_at", Timestamp),
    # a page of a team's history, newest first: `id` orders records of one millisecond
    Index("ix_records_history", "team_id", "created_at", "id"),
    Index("ix_records_created", "created_at"),
    # what a killed server has left unfinished
    Index("ix_records_status", "status", "instance"),
)
#: The stored pictures. A row is written before its file and deleted after it: no file is ever without a row. `mark` is
#: what the picture's invisible mark carries, ten hexadecimal digits; `manifest` the label of its credentials.
images = Table(
    "images",
    metadata,
    Column("key", String(300), primary_key=True),
    Column("record_id", _Id, ForeignKey("records.id"), nullable=False),
    Column("output", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("media_type", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("mark", String(10)),
    Column("manifest", String(80)),
    Index("ix_images_mark", "mark"),
    Index("ix_images_manifest", "manifest"),
    Index("ix_images_record", "record_id"),
    Index("ix_images_state", "state", "created_at"),
)
#: Records that were deleted and may still be restored. They are hidden; a while later they are removed for good.
trash = Table(
    "trash",
    metadata,
    Column("record_id", _Id, primary_key=True),
    Column("team_id", _Id, nullable=False),
    Column("deleted_by", _Id, nullable=False),
    Column("deleted_at", Timestamp, nullable=False),
    Index("ix_trash_deleted", "deleted_at"),
)
#: A team's named collections of pictures.
collections = Table(
    "collections",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("team_id", _Id, nullable=False),
    Column("name", String(100), nullable=False),
    Column("created_by", _Id, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    UniqueConstraint("team_id", "name"),
)
#: `image_key` is no foreign key: a picture may be removed at any time, and a row without one counts for nothing.
collection_pictures = Table(
    "collection_pictures",
    metadata,
    Column("collection_id", _Id, ForeignKey("collections.id"), primary_key=True),
    Column("image_key", String(300), primary_key=True),
    Column("added_at", Timestamp, nullable=False),
    Index("ix_collection_pictures_image", "image_key"),
)
#: Pages that show one picture to whoever has their link. `id` is the secret in the link.
shares = Table(
    "shares",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("team_id", _Id, nullable=False),
    Column("record_id", _Id, nullable=False),
    Column("image_key", String(300), nullable=False),
    Column("created_by", _Id, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    UniqueConstraint("image_key"),
)
#: The LoRA library. `owner` is a team's id, or `""` for LoRAs that every team sees. It is not NULL, of which SQL holds
#: no two to be equal: two public LoRAs could have one name.
loras = Table(
    "loras",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("owner", _Id, nullable=False),
    Column("name", String(100), nullable=False),
    Column("source", String(600), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("layout", String(100), nullable=False),
    Column("made_for", String(100), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("width", Integer),
    Column("bytes", BigInteger, nullable=False),
    Column("trigger_words", JSON, nullable=False),
    Column("base_model", JSON, nullable=False),
    Column("licence", String(200)),
    Column("warnings", JSON, nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("created_at", Timestamp, nullable=False),
    UniqueConstraint("owner", "name"),
    Index("ix_loras_sha256", "sha256"),
)
#: Which converted file a remote reference led to, and when it was last used.
lora_downloads = Table(
    "lora_downloads",
    metadata,
    Column("reference", String(600), primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("fetched_at", Timestamp, nullable=False),
    Column("used_at", Timestamp, nullable=False),
    Index("ix_lora_downloads_sha256", "sha256"),
)
#: The record that answers a client's `Idempotency-Key`.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("team_id", _Id, primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("body_sha256", String(64), nullable=False),
    Column("record_id", _Id, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Index("ix_idempotency_created", "created_at"),
)
#: Webhooks that are still to be delivered: a row is deleted when its message has arrived, or is given up. `instance` is
#: the id of the server that delivers it.
webhooks = Table(
    "webhooks",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("record_id", _Id, nullable=False),
    Column("team_id", _Id, nullable=False),
    Column("instance", String(100), nullable=False),
    Column("url", String(2000), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("due_at", Timestamp, nullable=False),
    Index("ix_webhooks_instance", "instance"),
)
#: A team's own tokens for the sites that LoRAs come from, encrypted (`loras/tokens`).
source_tokens = Table(
    "source_tokens",
    metadata,
    Column("team_id", _Id, primary_key=True),
    Column("site", String(16), primary_key=True),
    Column("token", Text, nullable=False),
    Column("created_at", Timestamp, nullable=False),
)
#: The key that signs pictures, shared by all servers of the database, encrypted (`accounts/signing_keys`). One row.
signing_keys = Table(
    "signing_keys",
    metadata,
    Column("name", String(20), primary_key=True),
    Column("sealed", Text, nullable=False),
    Column("created_at", Timestamp, nullable=False),
)
#: What a user signs in with beside keys: a name in its folded form (`accounts/passwords`) and the password's hash.
logins = Table(
    "logins",
    metadata,
    Column("user_id", _Id, ForeignKey("users.id"), primary_key=True),
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
    Column("user_id", _Id, ForeignKey("users.id"), nullable=False),
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
    Column("id", _Id, nullable=False, unique=True),
    Column("team_id", _Id, ForeignKey("teams.id"), nullable=False),
    Column("user_id", _Id, ForeignKey("users.id"), nullable=False),
    Column("key_id", _Id, ForeignKey("api_keys.id")),
    Column("method", String(16), nullable=False),
    Column("browser", String(100), nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("expires_at", Timestamp, nullable=False),
    Index("ix_sessions_user", "user_id"),
    Index("ix_sessions_expires", "expires_at"),
)
#: Links that administrators have made, as the SHA-256 `digest` of each secret. Without `user_id` one makes a new member
#: of the team; with it, that member chooses a password anew.
invites = Table(
    "invites",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("team_id", _Id, ForeignKey("teams.id"), nullable=False),
    Column("user_id", _Id, ForeignKey("users.id")),
    Column("user_name", String(200), nullable=False),
    Column("role", String(16), nullable=False),
    Column("credit_limit", BigInteger),
    Column("budget_window", String(8), nullable=False),
    Column("created_by", String(200), nullable=False),
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
    Column("id", _Counter, primary_key=True, autoincrement=True),
    Column("created_at", Timestamp, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("actor_id", _Id),
    Column("via", String(16), nullable=False),
    Column("team_id", _Id),
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
