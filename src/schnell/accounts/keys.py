"""API keys, of which only a hash is stored: made, listed, revoked, and turned into the caller who holds one.

A server's first start makes the first of them, for an administrator.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, and_, bindparam, delete, select, update

from schnell.accounts.identity import DEFAULT_SCOPES, SCOPES, ApiKey, Caller, Scope
from schnell.accounts.rates import check_rate_limit
from schnell.accounts.teams import create_team, find_member, list_teams
from schnell.clock import now
from schnell.database.connection import Connection, Prepared, upsert
from schnell.database.tables import api_keys, ended_sessions, members, new_id, teams, users
from schnell.errors import ConfigurationError, FieldProblem, InvalidFieldError, NotFoundError, UnauthorizedError

_PREFIX: Final = "schnell_"
#: Characters of a key that lists show: the prefix and six of its random ones, which tell keys apart and open nothing.
_SHOWN: Final = 14
#: A key that an operator has chosen is guarded by its length alone: its hash has no salt, and is quick to compute.
_SHORTEST_PRESET: Final = 16
_FIRST_TEAM: Final = "Default team"
_FIND_ENDED: Final = Prepared(select(ended_sessions.c.id).where(ended_sessions.c.id == bindparam("of_session")))


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made, with its `secret`, which is stored nowhere."""

    key: ApiKey
    secret: str


async def create_key(  # noqa: PLR0913 - one argument a column
    connection: Connection,
    team_id: str,
    user_id: str,
    *,
    name: str = "default",
    scopes: Sequence[str] = DEFAULT_SCOPES,
    rate_limit: str | None = None,
    expires_at: datetime | None = None,
    secret: str | None = None,
) -> NewKey:
    """Make a key for a member of a team. Without `secret`, the key's own text, it has 256 random bits.

    Raises:
        InvalidFieldError: an unknown scope, or a rate limit such as `60/minute` that cannot be read.
    """
    secret = secret or _PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        id=new_id(),
        team_id=team_id,
        user_id=user_id,
        name=name,
        # of a short preset key no more than half is shown
        prefix=secret[: min(_SHOWN, len(secret) // 2)],
        scopes=_check_scopes(scopes),
        rate_limit=check_rate_limit(rate_limit),
        created_at=now(),
        expires_at=expires_at,
        revoked_at=None,
    )
    values = {name: getattr(key, name) for name in ApiKey.__dataclass_fields__}
    await connection.execute(
        api_keys.insert().values(values | {"scopes": ",".join(key.scopes), "digest": digest_key(secret)})
    )
    return NewKey(key, secret)


async def list_keys(connection: Connection, team_id: str | None = None) -> list[ApiKey]:
    """The keys of a team, or all of them, oldest first."""
    query = select(api_keys).order_by(api_keys.c.created_at)
    if team_id:
        query = query.where(api_keys.c.team_id == team_id)
    return [_to_key(row) for row in await connection.execute(query)]


async def revoke_key(connection: Connection, id_or_prefix: str) -> ApiKey:
    """Refuse a key from now on. One that was revoked before keeps the time of the first time.

    Raises:
        NotFoundError: no key, or more than one, has this id or prefix.
    """
    matches = api_keys.c.id == id_or_prefix
    # a shorter prefix says too little: where there is one key only, any would name it
    if len(id_or_prefix) >= len(_PREFIX) + 4:
        matches = matches | api_keys.c.prefix.startswith(id_or_prefix, autoescape=True)
    found = (await connection.execute(select(api_keys).where(matches))).all()
    if len(found) != 1:
        raise NotFoundError(f"{len(found)} keys match {id_or_prefix!r}; `schnell keys list` shows their ids")
    revoked_at = found[0].revoked_at or now()
    await connection.execute(update(api_keys).where(api_keys.c.id == found[0].id).values(revoked_at=revoked_at))
    return _to_key((await connection.execute(select(api_keys).where(api_keys.c.id == found[0].id))).one())


async def end_session(connection: Connection, session_id: str, expires_at: datetime) -> None:
    """Refuse a browser session from now on. It is kept in mind until it would have ended by itself."""
    await connection.execute(delete(ended_sessions).where(ended_sessions.c.expires_at < now()))
    await upsert(connection, ended_sessions, {"id": session_id, "expires_at": expires_at})


async def has_ended(connection: Connection, session_id: str) -> bool:
    """Whether a browser session was ended by signing out."""
    return (await _FIND_ENDED.run(connection, {"of_session": session_id})).first is not None


async def authenticate(connection: Connection, secret: str) -> Caller:
    """The caller whose key this is.

    Raises:
        UnauthorizedError: the key is unknown, deleted, expired, or its team or member is inactive.
    """
    return await _find_caller(connection, _BY_DIGEST, digest_key(secret))


async def authenticate_id(connection: Connection, key_id: str) -> Caller:
    """The caller whose key has this id: a session's cookie holds the id, not the key.

    Raises:
        UnauthorizedError: as `authenticate`.
    """
    return await _find_caller(connection, _BY_ID, key_id)


async def prepare_first_start(connection: Connection, preset: str | None = None) -> str | None:
    """Make an administrator's key, and their team, if there is no such key yet. With `preset`, make it that key.

    Returns the text of a key that was made at random, to be shown once; None where none was made, or `preset` is it.

    Raises:
        ConfigurationError: `preset` is too short to be a secret.
    """
    if preset is not None and len(preset) < _SHORTEST_PRESET:
        raise ConfigurationError(f"SCHNELL_BOOTSTRAP_KEY must have at least {_SHORTEST_PRESET} characters")
    if await _has_key(connection, preset):
        return None
    team = next((team for team in await list_teams(connection) if team.name == _FIRST_TEAM), None)
    team = team or await create_team(connection, _FIRST_TEAM, owner="Administrator")
    owner = await find_member(connection, team.id)
    made = await create_key(connection, team.id, owner.user_id, name="first key", scopes=SCOPES, secret=preset)
    return None if preset else made.secret


def digest_key(secret: str) -> str:
    """What is stored of a key: its SHA-256, as 64 hexadecimal digits."""
    # a slow hash with a salt guards short passwords; nobody tries 2**256 keys, and every request computes this one
    return sha256(secret.encode()).hexdigest()


def _caller_query(condition: ColumnElement[bool]) -> Select[Any]:
    member = and_(members.c.team_id == api_keys.c.team_id, members.c.user_id == api_keys.c.user_id)
    return (
        select(
            api_keys,
            users.c.name.label("user_name"),
            members.c.role,
            members.c.status.label("member_status"),
            teams.c.status.label("team_status"),
            teams.c.name.label("team_name"),
            teams.c.may_disable_safety,
            teams.c.may_disable_watermark,
        )
        .join_from(api_keys, members, member)
        .join(teams, teams.c.id == api_keys.c.team_id)
        .join(users, users.c.id == api_keys.c.user_id)
        .where(condition)
    )


_BY_DIGEST: Final = Prepared(_caller_query(api_keys.c.digest == bindparam("wanted")))
_BY_ID: Final = Prepared(_caller_query(api_keys.c.id == bindparam("wanted")))


async def _find_caller(connection: Connection, query: Prepared, wanted: str) -> Caller:
    # looked up by its hash and not compared with one: how long that takes says nothing of any key
    row = (await query.run(connection, {"wanted": wanted})).first
    if row is None:
        raise UnauthorizedError("API Key is not valid. Send it in the API-KEY header")
    _refuse_inactive(row)
    return Caller(
        team_id=row.team_id,
        user_id=row.user_id,
        user_name=row.user_name,
        key_id=row.id,
        role=row.role,
        scopes=_split_scopes(row.scopes),
        rate_limit=row.rate_limit,
        may_disable_safety=row.may_disable_safety,
        may_disable_watermark=row.may_disable_watermark,
        team_name=row.team_name,
        key_prefix=row.prefix,
    )


def _refuse_inactive(row: Row[Any]) -> None:
    if row.revoked_at:
        raise UnauthorizedError("API Key has been deleted")
    if row.expires_at and row.expires_at <= now():
        raise UnauthorizedError("API Key has expired")
    if row.member_status != "ACTIVE" or row.team_status != "ACTIVE":
        raise UnauthorizedError("API Key is not active. Please contact your team administrator to be unblocked")


def _check_scopes(scopes: Sequence[str]) -> tuple[Scope, ...]:
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise InvalidFieldError(FieldProblem("scopes", f"must be some of {', '.join(SCOPES)}, got {unknown}"))
    # in one order, each once
    return tuple(scope for scope in SCOPES if scope in scopes)


def _split_scopes(text: str) -> tuple[Scope, ...]:
    return tuple(scope for scope in SCOPES if scope in text.split(","))


def _to_key(row: Row[Any]) -> ApiKey:
    values = {name: getattr(row, name) for name in ApiKey.__dataclass_fields__}
    return ApiKey(**(values | {"scopes": _split_scopes(row.scopes)}))


async def _has_key(connection: Connection, preset: str | None) -> bool:
    # a revoked key counts, too: who revokes the last one does not want to find another after the next start
    wanted = api_keys.c.digest == digest_key(preset) if preset else api_keys.c.scopes.contains("admin")
    return (await connection.execute(select(api_keys.c.id).where(wanted))).first() is not None
