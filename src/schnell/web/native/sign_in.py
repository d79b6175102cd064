"""Signing in beside keys: with a password, through an OpenID provider, and by accepting an invite."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Request, status
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.responses import JSONResponse, RedirectResponse, Response

from schnell.accounts.identities import admit
from schnell.accounts.identity import Member
from schnell.accounts.invites import accept_invite, read_invite
from schnell.accounts.openid import Flow, OpenIdProvider
from schnell.accounts.passwords import check_password, find_active_member, find_login, fold_name, keep_login
from schnell.accounts.sessions import Method, end_sessions, start_session
from schnell.database.connection import Connection
from schnell.errors import NotFoundError, SignInError, UnauthorizedError
from schnell.web.auth import address_of, cookie_name, is_secure, refuse_other_sites
from schnell.web.flow_cookie import FLOW_COOKIE, FLOW_SECONDS
from schnell.web.native.account import browser_of, own_path, with_cookie
from schnell.web.native.admin import Name
from schnell.web.openapi import TEXT, error_answers, example_of, json_answer, object_of
from schnell.web.services import services_of

router = APIRouter(tags=["account"])
_OPENID: Final = "/api/session/openid"
_WRONG: Final = "This name and this password do not belong together"
_TOKEN: Final = "Zk3c9yWq0sN1x8bLr5tVd2hGmJp7uEaQfXoRiYwT4CA"  # noqa: S105 - an example
_Password = Annotated[str, Field(min_length=1, max_length=256, examples=["twelve or more characters"])]
_Secret = Annotated[str, Field(min_length=20, max_length=100, examples=[_TOKEN])]


class _Body(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)


class PasswordLogin(_Body):
    """The name and the password of somebody who has accepted an invite."""

    name: Annotated[Name, Field(examples=["ada@example.org"])]
    password: _Password


class InviteSecret(_Body):
    """The secret of an invite: what stands behind `#` in its link."""

    invite: _Secret


class Acceptance(InviteSecret):
    """How somebody wants to be called, and to sign in from now on."""

    user_name: Annotated[Name, Field(examples=["Ada"])] | None = None
    name: Annotated[Name, Field(examples=["ada@example.org"])]
    password: _Password


@router.post(
    "/api/session/password",
    summary="Log in with a password",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=error_answers(400, 401, 403, 429),
)
async def log_in_with_password(request: Request, body: PasswordLogin) -> Response:
    """Set a session cookie. Wrong names and wrong passwords look alike, and take equally long."""
    refuse_other_sites(request)
    services = services_of(request)
    address, limit = address_of(request), services.config.sign_in_rate_limit
    async with services.rates.sign_in(address, limit):
        await services.rates.count_sign_in(fold_name(body.name))
        async with services.database.read() as connection:
            login = await find_login(connection, body.name)
        # outside of any transaction: hashing takes longer than everything else here
        if not await services.passwords.fits(body.password, login) or login is None:
            raise UnauthorizedError(_WRONG)
    async with services.database.write() as connection:
        member = await find_active_member(connection, login.user_id)
        token = await _start(request, connection, member, "password")
    return with_cookie(request, Response(status_code=status.HTTP_204_NO_CONTENT), token)


# Invites

_INVITE_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: json_answer(
        "The invite",
        example_of(
            object_of({"teamName": TEXT, "userName": TEXT, "role": TEXT, "createdBy": TEXT, "expiresAt": TEXT})
            | {"additionalProperties": False},
            {
                "teamName": "Design",
                "userName": "Ada",
                "role": "MEMBER",
                "createdBy": "Administrator",
                "expiresAt": "2027-01-31T00:00:00+00:00",
            },
        ),
    )
}


@router.post("/api/invites/show", summary="What an invite is for", responses=_INVITE_ANSWER | error_answers(400, 404))
async def show_invite(request: Request, body: InviteSecret) -> dict[str, Any]:
    """The team that an invite leads to, and who has made it. It is not used up by that."""
    async with services_of(request).database.read() as connection:
        invite = await read_invite(connection, body.invite)
    return {
        "teamName": invite.team_name,
        "userName": invite.user_name,
        "role": invite.role,
        "createdBy": invite.created_by,
        "expiresAt": invite.expires_at.isoformat(),
    }


@router.post(
    "/api/invites/accept",
    summary="Accept an invite",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=error_answers(400, 403, 404, 409, 429),
)
async def accept(request: Request, body: Acceptance) -> Response:
    """Become a member with a password, or as one choose it anew, which ends other sessions. Sets a session cookie."""
    refuse_other_sites(request)
    check_password(body.password, body.name)
    services = services_of(request)
    # a name that is taken is told here, so guesses of names are counted, too
    async with services.rates.sign_in(address_of(request), services.config.sign_in_rate_limit):
        token = await _accept(request, body)
    return with_cookie(request, Response(status_code=status.HTTP_204_NO_CONTENT), token)


async def _accept(request: Request, body: Acceptance) -> str:
    services = services_of(request)
    async with services.database.read() as connection:
        # before the hash is made: only invites that can be used are worth it
        await read_invite(connection, body.invite)
    password_hash = await services.passwords.make(body.password)
    async with services.database.write() as connection:
        member = await accept_invite(connection, body.invite, body.user_name)
        await keep_login(connection, member.user_id, body.name, password_hash)
        await end_sessions(connection, member.user_id)
        member = await find_active_member(connection, member.user_id)
        return await _start(request, connection, member, "password")


# OpenID

_ADDRESS_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: json_answer(
        "The provider's address",
        example_of(object_of({"address": TEXT}), {"address": "https://login.example.org/authorize?client_id=schnell"}),
    )
}


@router.get(
    _OPENID,
    summary="Log in with OpenID",
    status_code=status.HTTP_303_SEE_OTHER,
    response_class=RedirectResponse,
    responses=error_answers(400, 404),
)
async def begin_openid(request: Request, next: str = "/") -> Response:  # noqa: A002 - its public name
    """Go to the OpenID provider of this server, which sends the browser back to `…/callback`."""
    address, flow = await _provider(request).begin(own_path(next), None)
    return _with_flow(request, RedirectResponse(address, status.HTTP_303_SEE_OTHER), flow)


@router.post(
    _OPENID,
    summary="Accept an invite with OpenID",
    responses=_ADDRESS_ANSWER | error_answers(400, 403, 404),
)
async def begin_openid_with_invite(request: Request, body: InviteSecret) -> Response:
    """Where to send the browser for it to accept an invite as who it is at the OpenID provider.

    The secret comes in the body, and goes along in a sealed cookie: addresses stand in logs.
    """
    # or another site could make a browser's own identity a member of its author's choice
    refuse_other_sites(request)
    address, flow = await _provider(request).begin("/", body.invite)
    return _with_flow(request, JSONResponse({"address": address}), flow)


def _with_flow(request: Request, response: Response, flow: Flow) -> Response:
    response.set_cookie(
        cookie_name(request, FLOW_COOKIE),
        services_of(request).flows.seal(flow),
        max_age=FLOW_SECONDS,
        httponly=True,
        # the provider's redirect is a navigation from another site, with which strict cookies do not come
        samesite="lax",
        secure=is_secure(request),
    )
    return response


@router.get(
    f"{_OPENID}/callback",
    summary="Back from OpenID",
    status_code=status.HTTP_303_SEE_OTHER,
    response_class=RedirectResponse,
    responses=error_answers(400, 401, 403, 404, 409, 429),
)
async def finish_openid(request: Request, state: str = "", code: str = "", error: str = "") -> Response:
    """Set a session cookie for the member that the provider's identity is here, and go where they wanted to."""
    services, provider = services_of(request), _provider(request)
    address, limit = address_of(request), services.config.sign_in_rate_limit
    async with services.rates.sign_in(address, limit):
        flow = services.flows.open(request.cookies.get(cookie_name(request, FLOW_COOKIE), ""), state)
        if error or not code:
            raise SignInError(f"{provider.config.name} did not let you in ({error[:100] or 'no code'}); try again")
        who = await provider.finish(flow, code)
    async with services.database.write() as connection:
        member = await admit(connection, who, provider.config, flow.invite)
        token = await _start(request, connection, member, "oidc")
    response = with_cookie(request, RedirectResponse(flow.next, status.HTTP_303_SEE_OTHER), token)
    # each flow is good for one sign-in
    name, secure = cookie_name(request, FLOW_COOKIE), is_secure(request)
    response.delete_cookie(name, httponly=True, samesite="lax", secure=secure)
    return response


def _provider(request: Request) -> OpenIdProvider:
    provider = services_of(request).openid
    if provider is None:
        raise NotFoundError("this server has no OpenID provider: SCHNELL_OIDC_ISSUER is not set")
    return provider


async def _start(request: Request, connection: Connection, member: Member, method: Method) -> str:
    return await start_session(connection, member.team_id, member.user_id, method=method, browser=browser_of(request))
