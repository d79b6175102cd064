"""Signed-in browsers: a row for each, found by the hash of its cookie, that goes when the browser signs out."""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import delete, select

from schnell.accounts.keys import digest_key
from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.tables import new_id, sessions

Method = Literal["key", "password", "oidc"]
#: How long a browser stays signed in.
LIFETIME: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that is signed in, with a key (`key_id`), a password or by an OpenID provider."""

    id: str
    team_id: str
    user_id: str
    key_id: str | None
    method: Method
    browser: str
    created_at: datetime
    expires_at: datetime


async def start_session(  # noqa: PLR0913 - one argument a column
    connection: Connection, team_id: str, user_id: str, *, method: Method, browser: str, key_id: str | None = None
) -> str:
    """Sign a browser in; `browser` is how it calls itself. Returns the secret that its cookie holds."""
    token = secrets.token_urlsafe(32)
    moment = now()
    # those that have run out go here: nothing else looks at every session
    await connection.execute(delete(sessions).where(sessions.c.expires_at < moment))
    row = {"team_id": team_id, "user_id": user_id, "key_id": key_id, "method": method, "browser": browser[:100]}
    times = {"created_at": moment, "expires_at": moment + LIFETIME}
    await connection.execute(sessions.insert().values(row | times | {"id": new_id(), "digest": digest_key(token)}))
    return token


async def end_session(connection: Connection, token: str) -> None:
    """Sign out: the cookie opens nothing any more, wherever a copy of it is."""
    await connection.execute(delete(sessions).where(sessions.c.digest == digest_key(token)))


async def end_sessions(
    connection: Connection, user_id: str, *, session_id: str | None = None, but: str | None = None
) -> int:
    """End one session of a user (`session_id`), or all of them `but` one. Returns how many there were."""
    query = delete(sessions).where(sessions.c.user_id == user_id)
    if session_id is not None:
        query = query.where(sessions.c.id == session_id)
    if but is not None:
        query = query.where(sessions.c.id != but)
    return (await connection.execute(query)).rowcount


async def list_sessions(connection: Connection, user_id: str) -> list[Session]:
    """Where a user is signed in, the newest first."""
    query = select(sessions).where(sessions.c.user_id == user_id, sessions.c.expires_at > now())
    return [_to_session(row) for row in await connection.execute(query.order_by(sessions.c.created_at.desc()))]


def _to_session(row: Any) -> Session:
    return Session(**{name: getattr(row, name) for name in Session.__dataclass_fields__})
