"""The account page: credits, usage, the member's own keys and sign-in; the sign-in page, and that of an invite."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from schnell.accounts.identity import Caller
from schnell.accounts.invites import list_invites
from schnell.accounts.keys import list_keys
from schnell.accounts.passwords import SHORTEST, find_login_of, has_logins
from schnell.accounts.sessions import list_sessions
from schnell.accounts.teams import find_member, find_team, list_members
from schnell.accounts.usage import UsageRow, collect_usage
from schnell.database.connection import Connection
from schnell.web.native.account import own_path
from schnell.web.pages.languages import Language, language_of
from schnell.web.pages.site import find_caller, page, sign_in_first
from schnell.web.services import services_of

router = APIRouter()
_DAYS: Final = 30
_CHART_HEIGHT: Final = 96


@dataclass(frozen=True, slots=True)
class Day:
    """The usage of one day, and the height of its bar in the chart: 0 to 96 units, for the credits used."""

    day: str
    label: str
    requests: int
    pictures: int
    credits: int
    height: float


@router.get("/account")
async def account(request: Request) -> Response:
    """The page. An administrator sees the whole team's usage, its keys, members and invites, too."""
    caller = await find_caller(request)
    if caller is None:
        return sign_in_first(request)
    services = services_of(request)
    today = datetime.now(UTC).date()
    own = None if "admin" in caller.scopes else caller.user_id
    since = today - timedelta(days=_DAYS - 1)
    await services.last_uses.write(services.database)
    async with services.database.read() as connection:
        shown = await _read(connection, caller)
    async with services.database.scan() as connection:
        rows = await collect_usage(connection, team_id=caller.team_id, user_id=own, since=since)
    days = chart(rows, today, language_of(request))
    return page(request, "account.html", caller, **shown, days=days, chart_height=_CHART_HEIGHT)


@router.get("/sign-in")
async def sign_in(request: Request, next: str = "/") -> Response:  # noqa: A002 - its public name
    """Forms that make a session of a password or an API key, or lead to the OpenID provider, then go to `next`."""
    services = services_of(request)
    name = services.openid.config.name if services.openid else None
    async with services.database.read() as connection:
        # on a fresh server a key is all that anybody has
        keys_alone = name is None and not await has_logins(connection)
    shown = {"next": own_path(next), "openid": name, "keys_alone": keys_alone}
    return page(request, "sign_in.html", await find_caller(request), **shown)


@router.get("/join")
async def join(request: Request) -> Response:
    """Where an invite's link leads. Its secret stands behind `#`, so the page's script asks what it is for."""
    openid = services_of(request).openid
    name = openid.config.name if openid else None
    return page(request, "join.html", await find_caller(request), openid=name, shortest=SHORTEST)


async def _read(connection: Connection, caller: Caller) -> dict[str, Any]:
    """What the page shows of the member, and of the team to who manages it."""
    keys = await list_keys(connection, caller.team_id)
    manages = "admin" in caller.scopes
    login = await find_login_of(connection, caller.user_id)
    member = await find_member(connection, caller.team_id, caller.user_id)
    return {
        "team": await find_team(connection, caller.team_id),
        "member": member,
        "manages": manages,
        "keys": [key for key in reversed(keys) if key.user_id == caller.user_id],
        "others": [key for key in reversed(keys) if manages and key.user_id != caller.user_id],
        "members": await list_members(connection, caller.team_id) if manages else [],
        "invites": [each for each in await list_invites(connection, caller.team_id) if manages and each.is_open],
        "sessions": await list_sessions(connection, caller.user_id),
        "login": login.name if login else None,
        # a key that was lent must not become a way to be the owner
        "is_owner": caller.is_owner,
        "shortest": SHORTEST,
    }


def chart(rows: Sequence[UsageRow], today: date, language: Language) -> list[Day]:
    """The last 30 days up to `today`, oldest first, days without use included."""
    days = [today - timedelta(days=back) for back in reversed(range(_DAYS))]
    used = {day: [row for row in rows if row.day == day.isoformat()] for day in days}
    # at least 1: heights are divided by it, and a month may be without use
    highest = max(1, *(sum(row.credits for row in found) for found in used.values()))
    return [
        Day(
            day=day.isoformat(),
            label=language.day(day),
            requests=sum(row.requests for row in found),
            pictures=sum(row.pictures for row in found),
            credits=sum(row.credits for row in found),
            height=round(_CHART_HEIGHT * sum(row.credits for row in found) / highest, 1),
        )
        for day, found in used.items()
    ]
