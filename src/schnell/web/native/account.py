"""The caller's own account: browser sessions, who the caller is, and usage."""

import re
from dataclasses import asdict
from datetime import date
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, status
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.responses import JSONResponse, Response

from schnell.accounts.callers import authenticate
from schnell.accounts.sessions import LIFETIME, end_session, start_session
from schnell.accounts.teams import find_member, find_team
from schnell.accounts.usage import UsageRow, collect_usage, write_csv
from schnell.web.auth import Generator, Reader, address_of, cookie_name, is_secure, refuse_other_sites
from schnell.web.openapi import INTEGER, KEYED, TEXT, error_answers, example_of, json_answer, object_of
from schnell.web.services import services_of

router = APIRouter(tags=["account"])
#: What user agents name, the special before the general: each names those that it is descended from, too.
_BROWSERS: Final = {"Firefox/": "Firefox", "Edg/": "Edge", "OPR/": "Opera", "Chrome/": "Chrome", "Safari/": "Safari"}
_SYSTEMS: Final = {
    "Android": "Android",
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Windows": "Windows",
    "Mac OS X": "macOS",
    "Linux": "Linux",
}
#: A path of this site. `//host` leads elsewhere; browsers read a backslash as a slash, and drop tabs and line breaks.
_OWN_PATH: Final = re.compile(r"/(?![/\\])[^\\\x00-\x20\x7f]*")
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _read_day(value: Any) -> Any:
    """Refuse all but YYYY-MM-DD: pydantic would read `0` as a day in 1970."""
    if isinstance(value, str) and not _DAY.fullmatch(value):
        raise ValueError("must be a day such as 2026-11-01")
    return value


Since = Annotated[date | None, BeforeValidator(_read_day), Query(description="First day, such as 2026-11-01 (UTC).")]
Until = Annotated[date | None, BeforeValidator(_read_day), Query(description="Last day (UTC).")]
UsageForm = Annotated[Literal["json", "csv"], Query(alias="format", description="json or csv.")]
_USAGE_ROW: Final = object_of(
    dict.fromkeys(("day", "team", "user", "userId", "key"), TEXT)
    | dict.fromkeys(("requests", "failed", "pictures", "credits"), INTEGER)
)
_EXAMPLE_ROW: Final = UsageRow(
    "2026-11-25",
    "Default team",
    "Administrator",
    "schnell_Xk3fQ9",
    12,
    1,
    11,
    11_000,
    "5f0f4a8e-53d4-4c27-8a4f-0f5d8b1d7a20",
)


def _show_row(row: UsageRow) -> dict[str, Any]:
    return {to_camel(name): value for name, value in asdict(row).items()}


USAGE_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Usage",
        "content": {
            "application/json": {
                "schema": example_of(
                    object_of({"usage": {"type": "array", "items": _USAGE_ROW}}), {"usage": [_show_row(_EXAMPLE_ROW)]}
                )
            },
            "text/csv": {"schema": example_of(TEXT, write_csv([_EXAMPLE_ROW]))},
        },
    }
}
_WHO_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: json_answer(
        "The caller",
        example_of(
            object_of(
                dict.fromkeys(("teamId", "teamName", "userId", "userName"), TEXT)
                | {"role": {"enum": ["ADMIN", "MEMBER"]}, "scopes": {"type": "array", "items": TEXT}}
                | dict.fromkeys(("creditLimit", "usedCredit", "teamCreditLimit", "teamUsedCredit"), INTEGER)
            ),
            {
                "teamId": "8a1f6f3c-1b5d-4b6e-9a70-6f0b7a5c9d33",
                "teamName": "Default team",
                "userId": "5f0f4a8e-53d4-4c27-8a4f-0f5d8b1d7a20",
                "userName": "Administrator",
                "role": "ADMIN",
                "scopes": ["generate", "read", "admin", "operator"],
                "creditLimit": 100_000_000,
                "usedCredit": 1000,
                "teamCreditLimit": 100_000_000,
                "teamUsedCredit": 1000,
            },
        ),
    )
}


_SECRET_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: json_answer("The secret", example_of(object_of({"key": TEXT}), {"key": "whsec_C2FVsBQIhrscChlQ"}))
}


class Login(BaseModel):
    """An API key, to be traded for a session cookie."""

    model_config = ConfigDict(strict=True)
    key: Annotated[str, Field(min_length=1, max_length=512, examples=["schnell_Xk3fQ9…"])]


@router.post(
    "/api/session",
    summary="Log in",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=error_answers(400, 401, 403, 429),
)
async def log_in(request: Request, body: Login) -> Response:
    """Set a session cookie for pages in a browser. It dies with the key, and when the browser signs out."""
    # or another site could sign a browser in, and see what is drawn there from now on
    refuse_other_sites(request)
    services = services_of(request)
    address, limit = address_of(request), services.config.sign_in_rate_limit
    async with services.rates.sign_in(address, limit), services.database.read() as connection:
        caller = await authenticate(connection, body.key.strip())
    async with services.database.write() as connection:
        token = await start_session(
            connection,
            caller.team_id,
            caller.user_id,
            method="key",
            browser=browser_of(request),
            key_id=caller.key_id,
        )
    return with_cookie(request, Response(status_code=status.HTTP_204_NO_CONTENT), token)


@router.delete("/api/session", summary="Log out", status_code=status.HTTP_204_NO_CONTENT, responses=error_answers(403))
async def log_out(request: Request) -> Response:
    """End the session: its cookie opens nothing any more, wherever a copy of it is."""
    if token := request.cookies.get(cookie_name(request)):
        refuse_other_sites(request)
        async with services_of(request).database.write() as connection:
            await end_session(connection, token)
    response = Response(status_code=status.HTTP_204_NO_CONTENT)
    response.delete_cookie(cookie_name(request), httponly=True, samesite="lax", secure=is_secure(request))
    return response


def with_cookie(request: Request, response: Response, token: str) -> Response:
    """The response, which signs the browser in with a session's token."""
    response.set_cookie(
        cookie_name(request),
        token,
        max_age=int(LIFETIME.total_seconds()),
        httponly=True,
        # not strict: a link to the playground in an e-mail must open signed in
        samesite="lax",
        secure=is_secure(request),
    )
    return response


@router.get("/api/session", summary="Who am I", responses=_WHO_ANSWER | error_answers(401, 403), openapi_extra=KEYED)
async def who_am_i(request: Request, caller: Reader) -> dict[str, Any]:
    """The caller's team, name, scopes and credits."""
    async with services_of(request).database.read() as connection:
        member = await find_member(connection, caller.team_id, caller.user_id)
        team = await find_team(connection, caller.team_id)
    return {
        "teamId": team.id,
        "teamName": team.name,
        "userId": member.user_id,
        "userName": member.user_name,
        "role": member.role,
        "scopes": list(caller.scopes),
        "creditLimit": member.credit_limit,
        "usedCredit": member.used_credit,
        "teamCreditLimit": team.credit_limit,
        "teamUsedCredit": team.used_credit,
    }


@router.get(
    "/api/webhooks/secret",
    summary="The secret of webhooks",
    responses=_SECRET_ANSWER | error_answers(401, 403),
    openapi_extra=KEYED,
)
async def show_webhook_secret(request: Request, caller: Generator) -> dict[str, str]:
    """What this team's webhooks are signed with (https://www.standardwebhooks.com)."""
    return {"key": services_of(request).webhooks.secret_of(caller.team_id)}


@router.get("/api/usage", summary="Usage", responses=USAGE_ANSWER | error_answers(400, 401, 403), openapi_extra=KEYED)
async def usage(
    request: Request,
    caller: Reader,
    since: Since = None,
    until: Until = None,
    form: UsageForm = "json",
) -> Response:
    """Requests, pictures and credits by day, user and key: with the scope `admin` the team's, else one's own."""
    own = None if "admin" in caller.scopes else caller.user_id
    async with services_of(request).database.scan() as connection:
        rows = await collect_usage(connection, team_id=caller.team_id, user_id=own, since=since, until=until)
    return usage_response(rows, form)


def own_path(path: str) -> str:
    """A path to go to after a sign-in, if it is one of this site; else the first page."""
    return path if _OWN_PATH.fullmatch(path) else "/"


def browser_of(request: Request) -> str:
    """How the browser calls itself, cut to what its user recognizes it by."""
    agent = request.headers.get("user-agent", "")
    system = next((name for name in _SYSTEMS if name in agent), "")
    browser = next((shown for sign, shown in _BROWSERS.items() if sign in agent), agent.partition("/")[0][:40])
    return f"{browser} on {_SYSTEMS[system]}" if system else browser or "unknown"


def usage_response(rows: list[UsageRow], form: str) -> Response:
    """Usage as JSON if `form` is `json`, else as a CSV file to download."""
    if form == "json":
        return JSONResponse({"usage": [_show_row(row) for row in rows]})
    disposition = {"Content-Disposition": 'attachment; filename="usage.csv"'}
    return Response(write_csv(rows), media_type="text/csv; charset=utf-8", headers=disposition)
