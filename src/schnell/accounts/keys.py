"""API keys, of which only a hash is stored: made, listed, changed and revoked.

A server's first start makes the first of them, for an administrator who is also the server's operator.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import Row, Select, select, update

from schnell.accounts.identity import DEFAULT_SCOPES, SCOPES, ApiKey, Member, Scope
from schnell.accounts.rates import check_rate_limit
from schnell.accounts.teams import check_name, create_team, find_member, list_teams, set_operator
from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.tables import api_keys, new_id, users
from schnell.errors import ConflictError, FieldProblem, InvalidFieldError, NotFoundError

_PREFIX: Final = "schnell_"
#: Characters of a key that lists show: the prefix and six of its random ones, which tell keys apart and open nothing.
_SHOWN: Final = 14
_FIRST_TEAM: Final = "Default team"


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
        InvalidFieldError: a scope that is unknown or more than the member may, a rate limit such as `60/minute` that
            cannot be read, no name, or an end that has passed.
        NotFoundError: the team has no such member.
    """
    secret = secret or _PREFIX + secrets.token_urlsafe(32)
    member = await find_member(connection, team_id, user_id)
    key = ApiKey(
        id=new_id(),
        team_id=team_id,
        user_id=member.user_id,
        user_name=member.user_name,
        name=check_name(name),
        # of a short preset key no more than half is shown
        prefix=secret[: min(_SHOWN, len(secret) // 2)],
        scopes=_check_scopes(scopes, member),
        rate_limit=check_rate_limit(rate_limit),
        created_at=now(),
        expires_at=_check_end(expires_at),
        revoked_at=None,
    )
    values = {name: getattr(key, name) for name in ApiKey.__dataclass_fields__ if name in api_keys.c}
    await connection.execute(
        api_keys.insert().values(values | {"scopes": ",".join(key.scopes), "digest": digest_key(secret)})
    )
    return NewKey(key, secret)


async def list_keys(connection: Connection, team_id: str | None = None, user_id: str | None = None) -> list[ApiKey]:
    """The keys of a team, or of a member of it, or all of them, oldest first."""
    query = _key_query().order_by(api_keys.c.created_at)
    if team_id:
        query = query.where(api_keys.c.team_id == team_id)
    if user_id:
        query = query.where(api_keys.c.user_id == user_id)
    return [_to_key(row) for row in await connection.execute(query)]


async def find_key(connection: Connection, key_id: str) -> ApiKey:
    """The key with this id.

    Raises:
        NotFoundError: there is none.
    """
    row = (await connection.execute(_key_query().where(api_keys.c.id == key_id))).first()
    if row is None:
        raise NotFoundError(f"no key has the id {key_id!r}")
    return _to_key(row)


async def change_key(connection: Connection, key_id: str, **changes: Any) -> ApiKey:
    """Set columns of a key: `name`, and `rate_limit` or `expires_at`, of which None is none.

    Raises:
        NotFoundError: there is no such key.
        ConflictError: it was revoked.
        InvalidFieldError: the rate limit cannot be read, the name is empty, or the end has passed.
    """
    before = await find_key(connection, key_id)
    if before.revoked_at is not None:
        raise ConflictError("this key was revoked: nothing about it can be changed; make another one")
    if "rate_limit" in changes:
        changes["rate_limit"] = check_rate_limit(changes["rate_limit"])
    if "name" in changes:
        check_name(changes["name"])
    # who sends a whole key that has ended back, with another name, changes nothing about its end
    if changes.get("expires_at") != before.expires_at:
        _check_end(changes.get("expires_at"))
    if changes:
        await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(**changes))
    return await find_key(connection, key_id)


async def revoke_key(connection: Connection, id_or_prefix: str) -> ApiKey:
    """Refuse a key from now on. One that was revoked before keeps the time of the first time.

    Raises:
        NotFoundError: no key, or more than one, has this id or prefix.
    """
    found = await look_up_key(connection, id_or_prefix)
    revoked_at = found.revoked_at or now()
    await connection.execute(update(api_keys).where(api_keys.c.id == found.id).values(revoked_at=revoked_at))
    return await find_key(connection, found.id)


async def look_up_key(connection: Connection, id_or_prefix: str) -> ApiKey:
    """The key with this id, or whose text begins like this.

    Raises:
        NotFoundError: no key, or more than one, has this id or prefix.
    """
    matches = api_keys.c.id == id_or_prefix
    # a shorter prefix says too little: where there is one key only, any would name it
    if len(id_or_prefix) >= len(_PREFIX) + 4:
        matches = matches | api_keys.c.prefix.startswith(id_or_prefix, autoescape=True)
    found = (await connection.execute(_key_query().where(matches))).all()
    if len(found) != 1:
        raise NotFoundError(f"{len(found)} keys match {id_or_prefix!r}; `schnell keys list` shows their ids")
    return _to_key(found[0])


async def prepare_first_start(connection: Connection, preset: str | None = None) -> str | None:
    """Make an operator's key, and their team, if there is no such key yet. With `preset`, make it that key.

    Returns the text of a key that was made at random, to be shown once; None where none was made, or `preset` is it.
    """
    if await _has_key(connection, preset):
        return None
    team = next((team for team in await list_teams(connection) if team.name == _FIRST_TEAM), None)
    team = team or await create_team(connection, _FIRST_TEAM, owner="Administrator")
    owner = await find_member(connection, team.id)
    await set_operator(connection, owner.user_id, operator=True)
    made = await create_key(connection, team.id, owner.user_id, name="first key", scopes=SCOPES, secret=preset)
    return None if preset else made.secret


def digest_key(secret: str) -> str:
    """What is stored of a key: its SHA-256, as 64 hexadecimal digits."""
    # a slow hash with a salt guards short passwords; nobody tries 2**256 keys, and every request computes this one
    return sha256(secret.encode()).hexdigest()


def split_scopes(text: str) -> tuple[Scope, ...]:
    """The scopes as a key's row holds them."""
    return tuple(scope for scope in SCOPES if scope in text.split(","))


def _check_end(moment: datetime | None) -> datetime | None:
    if moment is not None and moment <= now():
        raise InvalidFieldError(FieldProblem("expiresAt", f"must be in the future, got {moment.isoformat()}"))
    return moment


def _check_scopes(scopes: Sequence[str], member: Member) -> tuple[Scope, ...]:
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise InvalidFieldError(FieldProblem("scopes", f"must be some of {', '.join(SCOPES)}, got {unknown}"))
    if beyond := [scope for scope in scopes if scope not in member.scopes]:
        what = "operator of this server" if "operator" in beyond else "administrator (ADMIN) of the team"
        problem = f"{member.user_name} is no {what}, so no key of theirs may have {', '.join(beyond)}"
        raise InvalidFieldError(FieldProblem("scopes", problem))
    # in one order, each once
    return tuple(scope for scope in SCOPES if scope in scopes)


def _key_query() -> Select[Any]:
    return select(api_keys, users.c.name.label("user_name")).join(users, users.c.id == api_keys.c.user_id)


def _to_key(row: Row[Any]) -> ApiKey:
    values = {name: getattr(row, name) for name in ApiKey.__dataclass_fields__}
    return ApiKey(**(values | {"scopes": split_scopes(row.scopes)}))


async def _has_key(connection: Connection, preset: str | None) -> bool:
    # a revoked key counts, too: who revokes the last one does not want to find another after the next start
    wanted = api_keys.c.digest == digest_key(preset) if preset else api_keys.c.scopes.contains("operator")
    return (await connection.execute(select(api_keys.c.id).where(wanted))).first() is not None
