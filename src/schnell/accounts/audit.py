"""The audit log: what administrators, operators and the command line did, who they were, and what was before and after.

Call `record` in the transaction of the change itself, so that there is no change without its line, and no line without
its change. Lines are only added; nothing changes or removes one.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, select

from schnell.accounts.identity import SYSTEM, Caller
from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.tables import audit

Via = Literal["key", "session", "command line", "server"]
#: What an action is called: what was changed, a point, and what was done to it.
_ACTION: Final = re.compile(r"[a-z]+(-[a-z]+)*\.[a-z]+(-[a-z]+)*")
MOST_ENTRIES: Final = 500
#: What an entry never shows: when a row was last touched is the entry's own time.
_NOT_SHOWN: Final = frozenset({"updated_at", "updated_by", "used_at", "used_credit"})


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: a user (`user_id`) over HTTP, someone on the command line, or the server itself."""

    name: str
    via: Via
    user_id: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log. `id` grows with time. `team_id`: the team that it was about, None for the whole server.

    `details` holds what was done: for a change, each field with its value before and after.
    """

    id: int
    created_at: datetime
    actor: str
    actor_id: str | None
    via: Via
    team_id: str | None
    action: str
    target: str
    target_id: str | None
    details: dict[str, Any]


SERVER: Final = Actor(SYSTEM, "server")


def actor_of(caller: Caller) -> Actor:
    """The caller of a request as an actor."""
    return Actor(caller.user_name, "session" if caller.session_id else "key", caller.user_id)


async def record(  # noqa: PLR0913 - one argument a column
    connection: Connection,
    actor: Actor,
    action: str,
    target: str,
    *,
    target_id: str | None = None,
    team_id: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Add a line. `action` is such as `key.revoked`; `target` is what people call what was changed.

    Raises:
        ValueError: `action` has another form.
    """
    if not _ACTION.fullmatch(action):
        raise ValueError(f"an action is called such as key.revoked, not {action!r}")
    values = {
        "created_at": now(),
        "actor": actor.name[:200],
        "actor_id": actor.user_id,
        "via": actor.via,
        "team_id": team_id,
        "action": action,
        "target": target[:300],
        "target_id": target_id,
        "details": dict(details or {}),
    }
    await connection.execute(audit.insert().values(values))


async def list_entries(  # noqa: PLR0913 - one argument a filter
    connection: Connection,
    *,
    team_id: str | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    before: int | None = None,
    limit: int = 100,
) -> list[Entry]:
    """The newest lines first, at most 500; `before` is the `id` of the last line of the page before.

    `actor` is a user's id or name. `action` is a whole one, or its beginning up to the point: `key` for all of keys.
    """
    wanted: list[ColumnElement[bool]] = []
    if team_id:
        wanted.append(audit.c.team_id == team_id)
    if actor:
        wanted.append((audit.c.actor_id == actor) | (audit.c.actor == actor))
    if action:
        wanted.append((audit.c.action == action) | audit.c.action.startswith(f"{action}.", autoescape=True))
    if since:
        wanted.append(audit.c.created_at >= since)
    if until:
        wanted.append(audit.c.created_at < until)
    if before:
        wanted.append(audit.c.id < before)
    query = select(audit).where(*wanted).order_by(audit.c.id.desc()).limit(min(limit, MOST_ENTRIES))
    names = Entry.__dataclass_fields__
    return [Entry(**{name: getattr(row, name) for name in names}) for row in await connection.execute(query)]


def differences(before: Any, after: Any) -> dict[str, Any]:
    """The fields in which two values of one dataclass differ, each with both of its values, as an entry's details."""
    old, new = asdict(before), asdict(after)
    changed = (name for name in old if old[name] != new[name] and name not in _NOT_SHOWN)
    return {name: [_as_json(old[name]), _as_json(new[name])] for name in changed}


def _as_json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
