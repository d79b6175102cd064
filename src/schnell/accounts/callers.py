"""Who sent a request: an API key, or the cookie of a signed-in browser, turned into the caller and what they may do."""

from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, and_, bindparam, select

from schnell.accounts.identity import Caller, scopes_of
from schnell.accounts.keys import digest_key, split_scopes
from schnell.clock import now
from schnell.database.connection import Connection, Prepared
from schnell.database.tables import api_keys, members, sessions, teams, users
from schnell.errors import UnauthorizedError


async def authenticate(connection: Connection, secret: str) -> Caller:
    """The caller whose API key this is.

    Raises:
        UnauthorizedError: the key is unknown, deleted, expired, or its team or member is inactive.
    """
    # looked up by its hash and not compared with one: how long that takes says nothing of any key
    row = (await _BY_KEY.run(connection, {"wanted": digest_key(secret)})).first
    if row is None:
        raise UnauthorizedError("API Key is not valid. Send it in the API-KEY header")
    return _to_caller(row)


async def authenticate_session(connection: Connection, token: str) -> Caller:
    """The caller who signed in with this session's token.

    Raises:
        UnauthorizedError: the session has ended, or the key that it was made with, or its team or member is inactive.
    """
    row = (await _BY_SESSION.run(connection, {"wanted": digest_key(token)})).first
    if row is None or row.session_expires_at <= now():
        raise UnauthorizedError("The session has ended. Log in again")
    return _to_caller(row)


_PERSON: Final = (
    users.c.name.label("user_name"),
    users.c.operator,
    members.c.team_id,
    members.c.user_id,
    members.c.role,
    members.c.status.label("member_status"),
    teams.c.status.label("team_status"),
    teams.c.name.label("team_name"),
    teams.c.may_disable_safety,
    teams.c.may_disable_watermark,
)
_KEY: Final = (
    api_keys.c.id.label("key_id"),
    api_keys.c.prefix.label("key_prefix"),
    api_keys.c.scopes,
    api_keys.c.rate_limit,
    api_keys.c.revoked_at,
    api_keys.c.expires_at,
)


def _with_person(query: Select[Any], team: ColumnElement[str], user: ColumnElement[str]) -> Select[Any]:
    return (
        query.join(members, and_(members.c.team_id == team, members.c.user_id == user))
        .join(teams, teams.c.id == team)
        .join(users, users.c.id == user)
    )


def _key_query() -> Select[Any]:
    query = select(*_PERSON, *_KEY).select_from(api_keys)
    return _with_person(query, api_keys.c.team_id, api_keys.c.user_id).where(api_keys.c.digest == bindparam("wanted"))


def _session_query() -> Select[Any]:
    session = (sessions.c.id.label("session_id"), sessions.c.expires_at.label("session_expires_at"))
    # outer: a session that was made without a key has none
    query = select(*_PERSON, *_KEY, *session).outerjoin_from(sessions, api_keys, api_keys.c.id == sessions.c.key_id)
    return _with_person(query, sessions.c.team_id, sessions.c.user_id).where(sessions.c.digest == bindparam("wanted"))


_BY_KEY: Final = Prepared(_key_query())
_BY_SESSION: Final = Prepared(_session_query())


def _to_caller(row: Row[Any]) -> Caller:
    _refuse_inactive(row)
    # a key may no more than its owner does now: who is no administrator any more has no key that is one
    may = scopes_of(row.role, operator=row.operator)
    scopes = may if row.key_id is None else tuple(scope for scope in split_scopes(row.scopes) if scope in may)
    lent = row.expires_at is not None or bool(row.rate_limit)
    return Caller(
        team_id=row.team_id,
        user_id=row.user_id,
        user_name=row.user_name,
        key_id=row.key_id,
        role=row.role,
        scopes=scopes,
        rate_limit=row.rate_limit,
        may_disable_safety=row.may_disable_safety,
        may_disable_watermark=row.may_disable_watermark,
        team_name=row.team_name,
        key_prefix=row.key_prefix or "",
        session_id=getattr(row, "session_id", None),
        is_owner=scopes == may and not lent,
        lent=lent,
    )


def _refuse_inactive(row: Row[Any]) -> None:
    if row.revoked_at:
        raise UnauthorizedError("API Key has been deleted")
    if row.expires_at and row.expires_at <= now():
        raise UnauthorizedError("API Key has expired")
    if row.member_status != "ACTIVE" or row.team_status != "ACTIVE":
        raise UnauthorizedError("API Key is not active. Please contact your team administrator to be unblocked")
