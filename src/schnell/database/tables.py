"""Every table of the database. Times are UTC; limits, costs and amounts are whole credits; sizes are bytes.

A change here needs a migration (`database/migrations`); a test compares the two.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    or_,
)
from sqlalchemy.dialects import postgresql

from schnell.database.people_tables import (
    Counter,
    Id,
    Timestamp,
    api_keys,
    audit,
    ended_sessions,
    identities,
    invites,
    logins,
    members,
    metadata,
    new_id,
    sessions,
    teams,
    users,
)

__all__ = [
    "Timestamp",
    "api_keys",
    "audit",
    "collection_pictures",
    "collections",
    "ended_sessions",
    "idempotency_keys",
    "identities",
    "images",
    "invites",
    "ledger",
    "logins",
    "lora_downloads",
    "loras",
    "members",
    "metadata",
    "new_id",
    "rate_counts",
    "records",
    "servers",
    "sessions",
    "shares",
    "signing_keys",
    "source_tokens",
    "teams",
    "trash",
    "users",
    "webhooks",
]

#: Append-only. `team_window` and `member_window` are the day of the row's reservation; the sum of `amount` over the
#: days of a member's (or team's) current window is its `used_credit`, see `accounts/credits`. `record_id` is no foreign
#: key: records are deleted one day, the rows of the ledger never are. `day` is what usage is reported by.
ledger = Table(
    "ledger",
    metadata,
    Column("id", Counter, primary_key=True, autoincrement=True),
    Column("team_id", Id, nullable=False),
    Column("user_id", Id, nullable=False),
    Column("key_id", Id),
    Column("record_id", Id, nullable=False),
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
    Column("id", Id, primary_key=True),
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
    Column("id", Id, primary_key=True),
    Column("team_id", Id, nullable=False),
    Column("user_id", Id, nullable=False),
    Column("key_id", Id),
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
_IS_UNFINISHED = or_(records.c.status == "QUEUED", records.c.status == "PROCESSING")
#: A team's generations that are under way, which are counted for each that is accepted.
Index("ix_records_unfinished", records.c.team_id, postgresql_where=_IS_UNFINISHED, sqlite_where=_IS_UNFINISHED)
#: The stored pictures. A row is written before its file and deleted after it: no file is ever without a row. `mark` is
#: what the picture's invisible mark carries, ten hexadecimal digits; `manifest` the label of its credentials.
images = Table(
    "images",
    metadata,
    Column("key", String(300), primary_key=True),
    Column("record_id", Id, ForeignKey("records.id"), nullable=False),
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
    Column("record_id", Id, primary_key=True),
    Column("team_id", Id, nullable=False),
    Column("deleted_by", Id, nullable=False),
    Column("deleted_at", Timestamp, nullable=False),
    Index("ix_trash_deleted", "deleted_at"),
)
#: A team's named collections of pictures.
collections = Table(
    "collections",
    metadata,
    Column("id", Id, primary_key=True),
    Column("team_id", Id, nullable=False),
    Column("name", String(100), nullable=False),
    Column("created_by", Id, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    UniqueConstraint("team_id", "name"),
)
#: `image_key` is no foreign key: a picture may be removed at any time, and a row without one counts for nothing.
collection_pictures = Table(
    "collection_pictures",
    metadata,
    Column("collection_id", Id, ForeignKey("collections.id"), primary_key=True),
    Column("image_key", String(300), primary_key=True),
    Column("added_at", Timestamp, nullable=False),
    Index("ix_collection_pictures_image", "image_key"),
)
#: Pages that show one picture to whoever has their link. `id` is the secret in the link.
shares = Table(
    "shares",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("team_id", Id, nullable=False),
    Column("record_id", Id, nullable=False),
    Column("image_key", String(300), nullable=False),
    Column("created_by", Id, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    UniqueConstraint("image_key"),
    Index("ix_shares_record", "record_id"),
)
#: The LoRA library. `owner` is a team's id, or `""` for LoRAs that every team sees. It is not NULL, of which SQL holds
#: no two to be equal: two public LoRAs could have one name.
loras = Table(
    "loras",
    metadata,
    Column("id", Id, primary_key=True),
    Column("owner", Id, nullable=False),
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
    Column("team_id", Id, primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("body_sha256", String(64), nullable=False),
    Column("record_id", Id, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Index("ix_idempotency_created", "created_at"),
)
#: Webhooks that are still to be delivered: a row is deleted when its message has arrived, or is given up. `instance` is
#: the id of the server that delivers it.
webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Id, primary_key=True),
    Column("record_id", Id, nullable=False),
    Column("team_id", Id, nullable=False),
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
    Column("team_id", Id, primary_key=True),
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
#: Requests of keys and addresses, as servers that share PostgreSQL count them together (`accounts/shared_rates`).
#: `who` is a hash. `counts` holds the newest parts of the window, the first of which is number `part` of the clock.
rate_counts = Table(
    "rate_counts",
    metadata,
    Column("who", String(64), primary_key=True),
    Column("rate", String(100), primary_key=True),
    Column("part", BigInteger, nullable=False),
    Column("counts", JSON().with_variant(postgresql.ARRAY(Integer), "postgresql"), nullable=False),
    Column("ends_at", Timestamp, nullable=False),
)
