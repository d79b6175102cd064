"""Administrators' invites and the audit log, below `/api/admin`."""

from dataclasses import fields
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request, status
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass

from schnell.accounts import invites
from schnell.accounts.administration import check_may_change, check_not_lent, check_team
from schnell.accounts.audit import MOST_ENTRIES, Entry, actor_of, list_entries
from schnell.accounts.identity import BudgetWindow, Role
from schnell.accounts.invites import Invite, NewInvite
from schnell.accounts.teams import find_member
from schnell.web.auth import Administrator
from schnell.web.native.admin import Credits, Moment, Name
from schnell.web.openapi import KeyedRoute, error_answers
from schnell.web.services import services_of

router = APIRouter(
    prefix="/api/admin", tags=["admin"], route_class=KeyedRoute, responses=error_answers(400, 401, 403, 404)
)
_CAMEL: Final = ConfigDict(alias_generator=to_camel, validate_by_name=True)


class InviteOrder(BaseModel):
    """Who is invited, and as what. The credit limit is the team's if absent."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)
    name: Annotated[Name, Field(examples=["Ada"])]
    role: Role = "MEMBER"
    credit_limit: Credits | None = None
    budget_window: BudgetWindow = "none"


@dataclass(frozen=True, slots=True, config=_CAMEL)
class ShownInvite(Invite):
    """An invite, without its secret."""

    id: Annotated[str, Field(examples=["8a1f6f3c-1b5d-4b6e-9a70-6f0b7a5c9d33"])]


class MadeInvite(BaseModel):
    """An invite and its link, which is shown this once: send it to nobody but the person invited."""

    link: Annotated[str, Field(examples=["https://schnell.example.org/join#invite=Zk3c9yWq0s…"])]
    details: ShownInvite


@dataclass(frozen=True, slots=True, config=_CAMEL)
class ShownEntry(Entry):
    """A line of the audit log."""

    action: Annotated[str, Field(examples=["key.revoked"])]


@router.get("/teams/{team_id}/invites", summary="Invites")
async def list_invites(request: Request, caller: Administrator, team_id: UUID) -> list[ShownInvite]:
    """A team's invites, the newest first, without their secrets."""
    check_team(caller, str(team_id))
    async with services_of(request).database.read() as connection:
        return [_show(each) for each in await invites.list_invites(connection, str(team_id))]


@router.post("/teams/{team_id}/invites", summary="Invite somebody", status_code=status.HTTP_201_CREATED)
async def invite(request: Request, caller: Administrator, team_id: UUID, body: InviteOrder) -> MadeInvite:
    """Make a link with which one person becomes a member of the team, within seven days."""
    check_team(caller, str(team_id))
    check_not_lent(caller)
    given = body.model_dump(exclude_none=True)
    async with services_of(request).database.write() as connection:
        made = await invites.make_invite(connection, actor_of(caller), str(team_id), given.pop("name"), **given)
    return _made(request, made)


@router.post(
    "/teams/{team_id}/users/{user_id}/invites", summary="Let a member in again", status_code=status.HTTP_201_CREATED
)
async def invite_again(request: Request, caller: Administrator, team_id: UUID, user_id: UUID) -> MadeInvite:
    """Make a link with which a member chooses their password anew; it ends their sessions then."""
    check_team(caller, str(team_id))
    check_not_lent(caller)
    async with services_of(request).database.write() as connection:
        member = await find_member(connection, str(team_id), str(user_id))
        check_may_change(caller, member)
        actor, name = actor_of(caller), member.user_name
        made = await invites.make_invite(
            connection, actor, member.team_id, name, role=member.role, user_id=member.user_id
        )
    return _made(request, made)


@router.delete("/invites/{invite_id}", summary="Revoke an invite")
async def revoke_invite(request: Request, caller: Administrator, invite_id: UUID) -> ShownInvite:
    """Make an invite's link useless from now on."""
    async with services_of(request).database.write() as connection:
        check_team(caller, (await invites.find_invite(connection, str(invite_id))).team_id)
        return _show(await invites.revoke_invite(connection, actor_of(caller), str(invite_id)))


@router.get("/audit", summary="Audit log")
async def audit_log(  # noqa: PLR0913, PLR0917 - one argument a filter
    request: Request,
    caller: Administrator,
    team: Annotated[UUID | None, Query(description="Only about this team.")] = None,
    actor: Annotated[str | None, Query(max_length=200, description="Only by this user, by id or name.")] = None,
    action: Annotated[
        str | None, Query(max_length=40, description="Only this action, or all of one kind: key.revoked, or key.")
    ] = None,
    since: Annotated[Moment | None, Query(description="From this moment on.")] = None,
    until: Annotated[Moment | None, Query(description="Before this moment.")] = None,
    before: Annotated[int | None, Query(ge=1, le=2**62, description="Only lines before this one's id.")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_ENTRIES)] = 100,
) -> list[ShownEntry]:
    """What administrators, operators and the command line did, the newest first; for administrators, to their team."""
    team_id = str(team) if team else None if caller.is_operator else caller.team_id
    if team_id:
        check_team(caller, team_id)
    wanted: dict[str, Any] = {"actor": actor, "action": action, "since": since, "until": until, "before": before}
    async with services_of(request).database.scan() as connection:
        found = await list_entries(connection, team_id=team_id, limit=limit, **wanted)
    return [ShownEntry(**{each.name: getattr(entry, each.name) for each in fields(Entry)}) for entry in found]


def invite_link(public_url: str, secret: str) -> str:
    """The address that an invite is sent as. Browsers send nothing of what stands behind `#`: no log has the secret."""
    return f"{public_url}/join#invite={secret}"


def _made(request: Request, made: NewInvite) -> MadeInvite:
    link = invite_link(services_of(request).config.public_url, made.secret)
    return MadeInvite(link=link, details=_show(made.invite))


def _show(found: Invite) -> ShownInvite:
    return ShownInvite(**{each.name: getattr(found, each.name) for each in fields(Invite)})
