"""The caller's own account: browser sessions, who the caller is, and usage."""

import re
import time
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, status
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from schnell.accounts.keys import authenticate, end_session
from schnell.accounts.teams import find_member, find_team
from schnell.accounts.usage import UsageRow, collect_usage, write_csv
from schnell.web.auth import SECURITY, Generator, Reader, refuse_other_sites
from schnell.web.openapi import INTEGER, TEXT, error_answers, example_of, json_answer, object_of
from schnell.web.services import services_of
from schnell.web.session import COOKIE, LIFETIME_SECONDS

router = APIRouter(tags=["account"])
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _read_day(value: Any) -> Any:
    """Refuse all but YYYY-MM-DD: pydantic would read `0` as a day in 1970."""
    if isinstance(value, str) and not _DAY.fullmatch(value):
        raise ValueError("must be a day such as 2026-11-01")
    return value


Since = Annotated[date | None, BeforeValidator(_read_day), Query(description="First day, such as 2026-11-01 (UTC).")]
Until = Annotated[date | None, BeforeValidator(_read_day), Query(description="Last day (UTC).")]
_USAGE_ROW: Final = object_of(
    dict.fromkeys(("day", "team", "user", "key"), TEXT)
    | dict.fromkeys(("requests", "failed", "pictures", "credits"), INTEGER)
)
_EXAMPLE_ROW: Final = UsageRow("2026-11-25", "Default team", "Administrator", "schnell_Xk3fQ9", 12, 1, 11, 11_000)
USAGE_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Usage",
        "content": {
            "application/json": {
                "schema": example_of(
                    object_of({"usage": {"type": "array", "items": _USAGE_ROW}}), {"usage": [asdict(_EXAMPLE_ROW)]}
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
                "scopes": ["generate", "read", "admin"],
                "creditLimit": 100_000_000,
                "usedCredit": 1000,
                "teamCreditLimit": 100_000_000,
                "teamUsedCredit": 1000,
            },
        ),
    )
}


class Login(BaseModel):
    """An API key, to be traded for a session cookie."""

    model_config = ConfigDict(strict=True)
    key: Annotated[str, Field(min_length=1, max_length=512, examples=["schnell_Xk3fQ9…"])]


@router.post(
    "/api/session", summary="Log in", status_code=status.HTTP_204_NO_CONTENT, responses=error_answers(400, 401, 403)
)
async def log_in(request: Request, body: Login) -> Response:
    """Set a session cookie for pages in a browser. It names the key by its id, and dies with it."""
    # or another site could sign a browser in, and see what is drawn there from now on
    refuse_other_sites(request)
    services = services_of(request)
    async with services.database.read() as connection:
        caller = await authenticate(connection, body.key.strip())
    response = Response(status_code=status.HTTP_204_NO_CONTENT)
    response.set_cookie(
        COOKIE,
        services.sessions.make(caller.key_id, int(time.time()) + LIFETIME_SECONDS),
        max_age=LIFETIME_SECONDS,
        httponly=True,
        # not strict: a link to the playground in an e-mail must open signed in
        samesite="lax",
        secure=services.config.public_url.startswith("https:"),
    )
    return response


@router.delete("/api/session", summary="Log out", status_code=status.HTTP_204_NO_CONTENT, responses=error_answers(403))
async def log_out(request: Request) -> Response:
    """End the session: its cookie opens nothing any more, wherever a copy of it is."""
    services = services_of(request)
    session = services.sessions.read(request.cookies.get(COOKIE, ""), time.time())
    if session is not None:
        refuse_other_sites(request)
        async with services.database.write() as connection:
            await end_session(connection, session.id, datetime.fromtimestamp(session.expires, UTC))
    response = Response(status_code=status.HTTP_204_NO_CONTENT)
    secure = services.config.public_url.startswith("https:")
    response.delete_cookie(COOKIE, httponly=True, samesite="lax", secure=secure)
    return response


@router.get("/api/session", summary="Who am I", responses=_WHO_ANSWER | error_answers(401, 403), dependencies=SECURITY)
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
    responses={200: json_answer("The secret", example_of(object_of({"key": TEXT}), {"key": "whsec_C2FVsBQIhrscChlQ"}))}
    | error_answers(401, 403),
    dependencies=SECURITY,
)
async def show_webhook_secret(request: Request, caller: Generator) -> dict[str, str]:
    """What this team's webhooks are signed with (https://www.standardwebhooks.com)."""
    return {"key": services_of(request).webhooks.secret_of(caller.team_id)}


@router.get("/api/usage", summary="Usage", responses=USAGE_ANSWER | error_answers(400, 401, 403), dependencies=SECURITY)
async def usage(
    request: Request,
    caller: Reader,
    since: Since = None,
    until: Until = None,
    format: Annotated[Literal["json", "csv"], Query(description="json or csv.")] = "json",  # noqa: A002 - its public name
) -> Response:
    """Requests, pictures and credits by day, user and key. Members see their own, a team's ADMIN sees all of it."""
    own = None if caller.role == "ADMIN" else caller.user_id
    async with services_of(request).database.scan() as connection:
        rows = await collect_usage(connection, team_id=caller.team_id, user_id=own, since=since, until=until)
    return usage_response(rows, format)


def usage_response(rows: list[UsageRow], form: str) -> Response:
    """Usage as JSON if `form` is `json`, else as a CSV file to download."""
    if form == "json":
        return JSONResponse({"usage": [asdict(row) for row in rows]})
    disposition = {"Content-Disposition": 'attachment; filename="usage.csv"'}
    return Response(write_csv(rows), media_type="text/csv; charset=utf-8", headers=disposition)
