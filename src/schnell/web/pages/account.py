"""The account page: credits left, usage by day, limits, and the team's API keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from schnell.accounts.keys import list_keys
from schnell.accounts.teams import find_member, find_team
from schnell.accounts.usage import UsageRow, collect_usage
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
    """The page. An administrator sees the whole team's usage; who may manage keys sees all of them."""
    caller = await find_caller(request)
    if caller is None:
        return sign_in_first(request)
    services = services_of(request)
    today = datetime.now(UTC).date()
    own = None if caller.role == "ADMIN" else caller.user_id
    since = today - timedelta(days=_DAYS - 1)
    async with services.database.read() as connection:
        team = await find_team(connection, caller.team_id)
        member = await find_member(connection, caller.team_id, caller.user_id)
        keys = await list_keys(connection, caller.team_id)
    async with services.database.scan() as connection:
        rows = await collect_usage(connection, team_id=caller.team_id, user_id=own, since=since)
    manages = "admin" in caller.scopes
    return page(
        request,
        "account.html",
        caller,
        team=team,
        member=member,
        days=chart(rows, today),
        chart_height=_CHART_HEIGHT,
        manages=manages,
        keys=[key for key in reversed(keys) if manages or key.user_id == caller.user_id],
    )


def chart(rows: Sequence[UsageRow], today: date) -> list[Day]:
    """The last 30 days up to `today`, oldest first, days without use included."""
    days = [today - timedelta(days=back) for back in reversed(range(_DAYS))]
    used = {day: [row for row in rows if row.day == day.isoformat()] for day in days}
    # at least 1: heights are divided by it, and a month may be without use
    highest = max(1, *(sum(row.credits for row in found) for found in used.values()))
    return [
        Day(
            day=day.isoformat(),
            label=f"{day.day} {day:%b}",
            requests=sum(row.requests for row in found),
            pictures=sum(row.pictures for row in found),
            credits=sum(row.credits for row in found),
            height=round(_CHART_HEIGHT * sum(row.credits for row in found) / highest, 1),
        )
        for day, found in used.items()
    ]
