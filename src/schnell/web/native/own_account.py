"""What members do for themselves: their own keys, their password, and where they are signed in."""

from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Request, status
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass

from schnell.accounts import administration, keys
from schnell.accounts.administration import check_owner
from schnell.accounts.audit import actor_of, record
from schnell.accounts.identity import ApiKey, Caller, Scope
from schnell.accounts.keys import find_key
from schnell.accounts.passwords import check_password, find_login_of, keep_login
from schnell.accounts.sessions import Session, end_sessions, list_sessions
from schnell.accounts.teams import find_member
from schnell.database.connection import Connection
from schnell.errors import FieldProblem, InvalidFieldError, NotFoundError
from schnell.web.auth import Reader
from schnell.web.native.admin import KeyChange, MadeKey, Moment, Name, RateLimit, ShownKey, show
from schnell.web.openapi import KeyedRoute, error_answers
from schnell.web.services import services_of

router = APIRouter(tags=["account"], route_class=KeyedRoute, responses=error_answers(400, 401, 403))
_CAMEL: Final = ConfigDict(alias_generator=to_camel, validate_by_name=True)


class _Body(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)


class NewOwnKey(_Body):
    """A key of the caller's own, which may no more than they, with an end in the future or none."""

    name: Annotated[Name, Field(examples=["notebook"])] = "default"
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=4)] | None = None
    rate_limit: RateLimit | None = None
    expires_at: Moment | None = None


class NewPassword(_Body):
    """A name to sign in with, and its password. `current`: the password until now, where there is one."""

    name: Annotated[Name, Field(examples=["ada@example.org"])]
    password: Annotated[str, Field(min_length=1, max_length=256, examples=["twelve or more characters"])]
    current: Annotated[str, Field(max_length=256)] | None = None


@dataclass(frozen=True, slots=True, config=_CAMEL)
class ShownSession(Session):
    """A browser that is signed in."""

    id: Annotated[str, Field(examples=["8a1f6f3c-1b5d-4b6e-9a70-6f0b7a5c9d33"])]


@router.get("/api/keys", summary="Your keys")
async def list_own_keys(request: Request, caller: Reader) -> list[ShownKey]:
    """The caller's own keys, oldest first, without their secrets."""
    services = services_of(request)
    await services.last_uses.write(services.database)
    async with services.database.read() as connection:
        return [show(ShownKey, key) for key in await keys.list_keys(connection, caller.team_id, caller.user_id)]


@router.post("/api/keys", summary="New key of your own", status_code=status.HTTP_201_CREATED)
async def create_own_key(request: Request, caller: Reader, body: NewOwnKey) -> MadeKey:
    """Make a key that belongs to the caller. Its secret is in this answer and nowhere else.

    Keys are managed in a session of a password or OpenID, or with a key that may all that its owner may and has neither
    an end nor a rate limit.
    """
    check_owner(caller)
    scopes = body.scopes or [each for each in caller.scopes if each in {"generate", "read"}]
    if beyond := [each for each in scopes if each not in caller.scopes]:
        problem = f"you came with {', '.join(caller.scopes)}, so a key cannot have {', '.join(beyond)}"
        raise InvalidFieldError(FieldProblem("scopes", problem))
    async with services_of(request).database.write() as connection:
        member = await find_member(connection, caller.team_id, caller.user_id)
        columns = {"name": body.name, "rate_limit": body.rate_limit, "expires_at": body.expires_at}
        made = await administration.create_key(connection, actor_of(caller), member, scopes=scopes, **columns)
    return MadeKey(key=made.secret, details=show(ShownKey, made.key))


@router.patch("/api/keys/{key_id}", summary="Change a key of your own", responses=error_answers(404, 409))
async def change_own_key(request: Request, caller: Reader, key_id: UUID, body: KeyChange) -> ShownKey:
    """Change the name of one of the caller's own keys, its rate limit, or when it ends."""
    check_owner(caller)
    async with services_of(request).database.write() as connection:
        key = _own(caller, await find_key(connection, str(key_id)))
        return show(ShownKey, await administration.change_key(connection, actor_of(caller), key, **body.changes()))


@router.delete("/api/keys/{key_id}", summary="Revoke a key of your own", responses=error_answers(404))
async def revoke_own_key(request: Request, caller: Reader, key_id: UUID) -> ShownKey:
    """Make one of the caller's own keys useless from now on. Browsers that signed in with it are signed out."""
    check_owner(caller)
    async with services_of(request).database.write() as connection:
        key = _own(caller, await find_key(connection, str(key_id)))
        return show(ShownKey, await administration.revoke_key(connection, actor_of(caller), key.id))


@router.put("/api/password", summary="Set your password", status_code=204, responses=error_answers(409))
async def set_password(request: Request, caller: Reader, body: NewPassword) -> None:
    """Sign in with this name and password from now on. Ends the caller's other sessions.

    A key that may less than its owner, or has an end or a rate limit, cannot do it: whoever has it would become the
    owner, and stay it.
    """
    check_owner(caller)
    check_password(body.password, body.name)
    services = services_of(request)
    async with services.database.read() as connection:
        login = await find_login_of(connection, caller.user_id)
    if login is not None:
        await services.rates.count_sign_in(login.name)
        if not await services.passwords.fits(body.current or "", login):
            raise InvalidFieldError(FieldProblem("current", "is not the password that you have now"))
    password_hash = await services.passwords.make(body.password)
    async with services.database.write() as connection:
        await keep_login(connection, caller.user_id, body.name, password_hash)
        await end_sessions(connection, caller.user_id, but=caller.session_id)
        who, name = actor_of(caller), caller.user_name
        await record(connection, who, "password.set", name, target_id=caller.user_id, team_id=caller.team_id)


@router.get("/api/sessions", summary="Where you are signed in")
async def list_own_sessions(request: Request, caller: Reader) -> list[ShownSession]:
    """The caller's signed-in browsers, the newest first."""
    async with services_of(request).database.read() as connection:
        found = await list_sessions(connection, caller.user_id)
    return [ShownSession(**{name: getattr(each, name) for name in Session.__dataclass_fields__}) for each in found]


@router.delete("/api/sessions", summary="Sign out everywhere else", status_code=204)
async def end_other_sessions(request: Request, caller: Reader) -> None:
    """End every session of the caller's but the one that asks."""
    check_owner(caller)
    async with services_of(request).database.write() as connection:
        count = await end_sessions(connection, caller.user_id, but=caller.session_id)
        await _record_end(connection, caller, count)


@router.delete("/api/sessions/{session_id}", summary="Sign out there", status_code=204, responses=error_answers(404))
async def end_own_session(request: Request, caller: Reader, session_id: UUID) -> None:
    """End one of the caller's sessions."""
    check_owner(caller)
    async with services_of(request).database.write() as connection:
        if not await end_sessions(connection, caller.user_id, session_id=str(session_id)):
            raise NotFoundError("you are not signed in there")
        await _record_end(connection, caller, 1)


async def _record_end(connection: Connection, caller: Caller, count: int) -> None:
    ids = {"target_id": caller.user_id, "team_id": caller.team_id}
    await record(connection, actor_of(caller), "session.ended", caller.user_name, details={"sessions": count}, **ids)


def _own(caller: Caller, key: ApiKey) -> Any:
    if (key.team_id, key.user_id) != (caller.team_id, caller.user_id):
        # as if there were none: whether it is another's is nothing to be told
        raise NotFoundError(f"no key of yours has the id {key.id!r}")
    return key
