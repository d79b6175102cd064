"""Sessions that were ended by signing out; no secrets in the addresses of LoRAs; usage by team and day."""

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit, urlunsplit

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_loras = sa.table("loras", sa.column("id"), sa.column("source"))
_downloads = sa.table("lora_downloads", sa.column("reference"))
_records = sa.table(
    "records",
    sa.column("id"),
    *(sa.column(name, sa.JSON) for name in ("prompt_object", "settings", "response_object", "receipts")),
)
_URL: Final = re.compile(r"DirectUrl\(url='(.*)'\)$")


def upgrade() -> None:
    """Create the table and the index, and take out of every row what stands behind the addresses of LoRAs."""
    op.create_table(
        "ended_sessions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ended_sessions")),
    )
    op.create_index("ix_ended_sessions_expires", "ended_sessions", ["expires_at"])
    op.create_index("ix_ledger_team_day", "ledger", ["team_id", "day"])
    _clean_library()
    _clean_records()


def downgrade() -> None:
    """Drop the table and the index. What was taken out of rows does not come back."""
    op.drop_index("ix_ledger_team_day", "ledger")
    op.drop_table("ended_sessions")


def _clean_library() -> None:
    connection = op.get_bind()
    for row in connection.execute(sa.select(_loras)).all():
        if (shown := _show(row.source)) != row.source:
            connection.execute(sa.update(_loras).where(_loras.c.id == row.id).values(source=shown))
    known = set(connection.execute(sa.select(_downloads.c.reference)).scalars())
    for reference in [*known]:
        if (key := _key(reference)) == reference:
            continue
        this = _downloads.c.reference == reference
        if key in known:
            connection.execute(sa.delete(_downloads).where(this))
        else:
            connection.execute(sa.update(_downloads).where(this).values(reference=key))


def _clean_records() -> None:
    """Only rows in which an address with a query or a fragment can stand are read in whole."""
    connection = op.get_bind()
    settings = sa.cast(_records.c.settings, sa.Text)
    # as JSON is written: a slash may be escaped or not
    wanted = sa.or_(*(settings.like(f"%{form}%") for form in ("://", ":\\/\\/", ".com/", ".co/")))
    marked = sa.or_(*(settings.like(f"%{mark}%") for mark in ("?", "#", "@")))
    for row in connection.execute(sa.select(_records).where(wanted, marked)).all():
        clean: dict[str, Any] = {
            "prompt_object": _in_object(row.prompt_object, ("lora_weights", "extra_lora")),
            "settings": _in_list(row.settings, "reference"),
            "response_object": _in_list(row.response_object, "name"),
            "receipts": [_in_list(each, "name") for each in row.receipts or []],
        }
        if any(json.dumps(getattr(row, name)) != json.dumps(value) for name, value in clean.items()):
            connection.execute(sa.update(_records).where(_records.c.id == row.id).values(clean))


def _in_object(found: Any, names: tuple[str, ...]) -> Any:
    if not isinstance(found, dict):
        return found
    return {name: _show(value) if name in names and isinstance(value, str) else value for name, value in found.items()}


def _in_list(found: Any, name: str) -> Any:
    """An object whose list `loras` holds objects with an address under `name`."""
    if not isinstance(found, dict) or not isinstance(found.get("loras"), list):
        return found
    return found | {"loras": [_in_object(each, (name,)) for each in found["loras"]]}


# as `loras/references` did when this migration was written: a migration does the same for ever


def _show(text: str) -> str:
    text = text.strip()
    _, separator, _ = text.partition("://")
    hosts = {"huggingface.co", "hf.co", "civitai.com", "replicate.com"}
    if not separator and text.partition("/")[0].lower().removeprefix("www.") not in hosts:
        return text
    try:
        parts = urlsplit(text if separator else f"https://{text}")
    except ValueError:
        return re.split(r"[?#]", text, maxsplit=1)[0]
    on_civitai = (parts.hostname or "").removeprefix("www.") == "civitai.com"
    version = (parse_qs(parts.query).get("modelVersionId") or [""])[0] if on_civitai else ""
    query = f"modelVersionId={version}" if version.isascii() and version.isdigit() else ""
    shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))
    return shown if separator else shown.removeprefix("https://")


def _key(reference: str) -> str:
    def cut(match: re.Match[str]) -> str:
        url = match[1]
        shown: Callable[[str], str] = _show
        if shown(url) == url:
            return match[0]
        return f"DirectUrl(url='{shown(url)[:400]}') {hashlib.sha256(url.encode()).hexdigest()}"

    return _URL.sub(cut, reference)
