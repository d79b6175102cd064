"""The administrators' pages: what goes on now, teams with their members, limits and keys, usage, and the audit log.

Administrators of a team see their team, operators the whole server. What is changed goes through the API's routes.
"""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from schnell.accounts.administration import check_team
from schnell.accounts.audit import list_entries
from schnell.accounts.identity import Caller
from schnell.accounts.invites import list_invites
from schnell.accounts.keys import list_keys
from schnell.accounts.teams import find_team, list_members, list_teams
from schnell.errors import ForbiddenError
from schnell.generations.overview import Grouping, group_usage, list_failures, list_stored
from schnell.web.gauges import read_figures
from schnell.web.native.operations import (
    describe_devices,
    describe_queue,
    describe_replicas,
    describe_servers,
    team_seen_by,
)
from schnell.web.pages.site import find_caller, page, sign_in_first
from schnell.web.services import services_of

router = APIRouter(prefix="/admin")
_DAYS: Final = 30
_ENTRIES: Final = 100


@router.get("")
async def now(request: Request) -> Response:
    """The queue with its buttons, devices and their memory, failures, and what is stored."""
    caller = await _find_administrator(request)
    if caller is None:
        return sign_in_first(request)
    services, team_id = services_of(request), team_seen_by(caller, None)
    async with services.database.scan() as connection:
        shown: dict[str, Any] = {
            "failures": await list_failures(connection, team_id),
            "stored": await list_stored(connection, team_id),
            "figures": await read_figures(connection) if caller.is_operator else None,
            "servers": await describe_servers(services, connection),
        }
    return page(
        request,
        "admin_now.html",
        caller,
        section="Now",
        queue=await describe_queue(services, team_id),
        devices=describe_devices(services),
        disk=services.gauges.disk(),
        **shown,
    )


@router.get("/replicas")
async def replicas(request: Request) -> Response:
    """The cluster's replicas: their work, memory, plan, and the LoRAs in their slots. For operators."""
    caller = await _find_administrator(request)
    if caller is None:
        return sign_in_first(request)
    if not caller.is_operator:
        raise ForbiddenError("this page is for operators of the server")
    shown = await describe_replicas(services_of(request))
    return page(request, "admin_replicas.html", caller, section="Replicas", **shown)


@router.get("/teams")
async def teams(request: Request) -> Response:
    """The teams and what they have used."""
    caller = await _find_administrator(request)
    if caller is None:
        return sign_in_first(request)
    async with services_of(request).database.read() as connection:
        seen = [team for team in await list_teams(connection) if caller.is_operator or team.id == caller.team_id]
        sizes = [each.team_id for each in await list_members(connection)]
    shown = [(team, sizes.count(team.id)) for team in seen]
    return page(request, "admin_teams.html", caller, section="Teams", teams=shown)


@router.get("/teams/{team_id}")
async def team(request: Request, team_id: UUID) -> Response:
    """One team: its budget, its members and theirs, its keys."""
    caller = await _find_administrator(request)
    if caller is None:
        return sign_in_first(request)
    check_team(caller, str(team_id))
    async with services_of(request).database.read() as connection:
        found = await find_team(connection, str(team_id))
        members = await list_members(connection, found.id)
        keys = await list_keys(connection, found.id)
        invited = await list_invites(connection, found.id)
    shown = {
        "team": found,
        "members": members,
        "invites": [each for each in invited if not each.accepted_at and not each.revoked_at],
        "keys": sorted(keys, key=lambda key: key.revoked_at is not None),
    }
    return page(request, "admin_team.html", caller, section="Teams", **shown)


@router.get("/usage")
async def usage(
    request: Request, by: Grouping = "day", since: date | str | None = None, until: date | str | None = None
) -> Response:
    """Usage of the last 30 days, or of other days, by what the form says."""
    caller = await _find_administrator(request)
    if caller is None:
        return sign_in_first(request)
    last = until if isinstance(until, date) else datetime.now(UTC).date()
    first = since if isinstance(since, date) else last - timedelta(days=_DAYS - 1)
    async with services_of(request).database.scan() as connection:
        rows = await group_usage(connection, by, team_id=team_seen_by(caller, None), since=first, until=last)
    return page(request, "admin_usage.html", caller, section="Usage", by=by, usage=rows, since=first, until=last)


@router.get("/audit")
async def audit(
    request: Request,
    actor: Annotated[str, Query(max_length=200)] = "",
    action: Annotated[str, Query(max_length=100)] = "",
    before: Annotated[int | None, Query(ge=1)] = None,
) -> Response:
    """The audit log, the newest first, by who and what."""
    caller = await _find_administrator(request)
    if caller is None:
        return sign_in_first(request)
    async with services_of(request).database.read() as connection:
        found = await list_entries(
            connection,
            team_id=team_seen_by(caller, None),
            actor=actor or None,
            action=action or None,
            before=before,
            limit=_ENTRIES,
        )
    older = found[-1].id if len(found) == _ENTRIES else None
    shown = {"entries": found, "actor": actor, "action": action, "older": older}
    return page(request, "admin_audit.html", caller, section="Audit log", **shown)


async def _find_administrator(request: Request) -> Caller | None:
    """Who is signed in, None if nobody is. Raises ForbiddenError for those who administrate nothing."""
    caller = await find_caller(request)
    if caller is not None and "admin" not in caller.scopes and not caller.is_operator:
        raise ForbiddenError("these pages are for administrators of a team and operators of the server")
    return caller
