"""The operator's API: teams, their members, their keys. It needs a key with the scope `admin`."""

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request, status
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel
from starlette.responses import Response

from schnell.accounts import keys, teams
from schnell.accounts.identity import DEFAULT_CREDIT_LIMIT, DEFAULT_SCOPES, BudgetWindow, Role, Scope, Status
from schnell.accounts.usage import collect_usage
from schnell.web.auth import SECURITY, Administrator
from schnell.web.fields import whole_number
from schnell.web.native.account import USAGE_ANSWER, Since, Until, usage_response
from schnell.web.openapi import error_answers
from schnell.web.services import services_of

router = APIRouter(
    prefix="/api/admin", tags=["admin"], dependencies=SECURITY, responses=error_answers(400, 401, 403, 404, 409)
)
_MOST_CREDITS: Final = 10**15
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*[^\x00-\x20][^\x00-\x1f]*$")
]
Credits = Annotated[int, Field(ge=0, le=_MOST_CREDITS), BeforeValidator(whole_number)]


def _only_text(value: Any) -> Any:
    """pydantic would take 0 for a moment in 1970."""
    if not isinstance(value, str):
        raise ValueError("must be a moment such as 2027-01-31T00:00:00Z")  # noqa: TRY004 - what pydantic understands
    return value


class _Body(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)

    def given(self) -> dict[str, Any]:
        """The fields that were sent, and not as null."""
        return self.model_dump(exclude_none=True)


class _Shown(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True)


class NewTeam(_Body):
    """A team, with one ADMIN member called `owner`."""

    name: Annotated[Name, Field(examples=["Design"])]
    credit_limit: Credits = DEFAULT_CREDIT_LIMIT
    budget_window: BudgetWindow = "none"
    owner: Name | None = None


class TeamChange(_Body):
    """What to change about a team; what is absent stays."""

    status: Status | None = None
    credit_limit: Annotated[Credits | None, Field(examples=[5_000_000])] = None
    budget_window: BudgetWindow | None = None
    may_disable_safety: bool | None = None


class NewMember(_Body):
    """A user of a team. The credit limit is the team's if absent."""

    name: Annotated[Name, Field(examples=["Ada"])]
    role: Role = "MEMBER"
    credit_limit: Credits | None = None
    budget_window: BudgetWindow = "none"
    avatar: Annotated[str, Field(max_length=2000, pattern=r"^https://[!-~]+$")] | None = None


class MemberChange(_Body):
    """What to change about a member; what is absent stays."""

    status: Status | None = None
    role: Role | None = None
    credit_limit: Annotated[Credits | None, Field(examples=[100_000])] = None
    budget_window: BudgetWindow | None = None


class NewKey(_Body):
    """A key for a member, by id or name (the team's first if absent)."""

    user: Name | None = None
    name: Name = "default"
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3)] = list(DEFAULT_SCOPES)
    rate_limit: (
        Annotated[str, Field(pattern=r"^[1-9][0-9]{0,6}/(second|minute|hour|day)$", examples=["60/minute"])] | None
    ) = None
    expires_at: Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_only_text)] | None = None


_Id = Annotated[str, Field(examples=["8a1f6f3c-1b5d-4b6e-9a70-6f0b7a5c9d33"])]


class ShownTeam(_Shown):
    """A team."""

    id: _Id
    name: str
    status: Status
    credit_limit: int
    used_credit: int
    budget_window: BudgetWindow
    may_disable_safety: bool
    created_at: datetime
    updated_at: datetime


class ShownMember(_Shown):
    """A member."""

    team_id: _Id
    user_id: str
    user_name: str
    user_avatar: str | None
    status: Status
    role: Role
    credit_limit: int
    used_credit: int
    budget_window: BudgetWindow
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str


class ShownKey(_Shown):
    """A key, without its secret."""

    id: _Id
    team_id: str
    user_id: str
    name: str
    prefix: str
    scopes: tuple[Scope, ...]
    rate_limit: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class MadeKey(_Shown):
    """A key and its secret, which is shown this once."""

    key: Annotated[str, Field(examples=["schnell_Xk3fQ9…"])]
    details: ShownKey


@router.get("/teams", summary="Teams")
async def list_teams(request: Request, _caller: Administrator) -> list[ShownTeam]:
    """Every team, oldest first."""
    async with services_of(request).database.read() as connection:
        return [ShownTeam.model_validate(team) for team in await teams.list_teams(connection)]


@router.post("/teams", summary="New team", status_code=status.HTTP_201_CREATED)
async def create_team(request: Request, _caller: Administrator, body: NewTeam) -> ShownTeam:
    """Make a team with one ADMIN member."""
    async with services_of(request).database.write() as connection:
        return ShownTeam.model_validate(await teams.create_team(connection, **body.given()))


@router.patch("/teams/{team_id}", summary="Change a team")
async def change_team(request: Request, _caller: Administrator, team_id: UUID, body: TeamChange) -> ShownTeam:
    """Change limits, the budget's window, or the status."""
    async with services_of(request).database.write() as connection:
        return ShownTeam.model_validate(await teams.change_team(connection, str(team_id), **body.given()))


@router.get("/teams/{team_id}/users", summary="Members")
async def list_members(request: Request, _caller: Administrator, team_id: UUID) -> list[ShownMember]:
    """A team's members, oldest first."""
    async with services_of(request).database.read() as connection:
        team = await teams.find_team(connection, str(team_id))
        return [ShownMember.model_validate(each) for each in await teams.list_members(connection, team.id)]


@router.post("/teams/{team_id}/users", summary="New member", status_code=status.HTTP_201_CREATED)
async def add_member(request: Request, caller: Administrator, team_id: UUID, body: NewMember) -> ShownMember:
    """Make a user and put them into the team."""
    given = body.given()
    async with services_of(request).database.write() as connection:
        member = await teams.add_member(
            connection, str(team_id), given.pop("name"), created_by=caller.user_name, **given
        )
        return ShownMember.model_validate(member)


@router.patch("/teams/{team_id}/users/{user_id}", summary="Change a member")
async def change_member(
    request: Request, caller: Administrator, team_id: UUID, user_id: UUID, body: MemberChange
) -> ShownMember:
    """Change a member's role, limits or status."""
    async with services_of(request).database.write() as connection:
        member = await teams.change_member(
            connection, str(team_id), str(user_id), updated_by=caller.user_name, **body.given()
        )
        return ShownMember.model_validate(member)


@router.get("/teams/{team_id}/keys", summary="Keys")
async def list_keys(request: Request, _caller: Administrator, team_id: UUID) -> list[ShownKey]:
    """A team's keys, without their secrets."""
    async with services_of(request).database.read() as connection:
        team = await teams.find_team(connection, str(team_id))
        return [ShownKey.model_validate(key) for key in await keys.list_keys(connection, team.id)]


@router.post("/teams/{team_id}/keys", summary="New key", status_code=status.HTTP_201_CREATED)
async def create_key(request: Request, _caller: Administrator, team_id: UUID, body: NewKey) -> MadeKey:
    """Make a key. Its secret is in this answer and nowhere else."""
    given = body.given()
    async with services_of(request).database.write() as connection:
        team = await teams.find_team(connection, str(team_id))
        member = await teams.find_member(connection, team.id, given.pop("user", None))
        made = await keys.create_key(connection, team.id, member.user_id, **given)
        return MadeKey(key=made.secret, details=ShownKey.model_validate(made.key))


@router.delete("/keys/{key_id}", summary="Revoke a key")
async def revoke_key(request: Request, _caller: Administrator, key_id: UUID) -> ShownKey:
    """Make a key useless from now on."""
    async with services_of(request).database.write() as connection:
        return ShownKey.model_validate(await keys.revoke_key(connection, str(key_id)))


@router.get("/usage", summary="Usage of all teams", responses=USAGE_ANSWER)
async def usage(
    request: Request,
    _caller: Administrator,
    team: Annotated[UUID | None, Query(description="Only this team's.")] = None,
    since: Since = None,
    until: Until = None,
    form: Annotated[str, Query(alias="format", pattern="^(json|csv)$", description="json or csv.")] = "json",
) -> Response:
    """Requests, pictures and credits by day, team, user and key."""
    async with services_of(request).database.read() as connection:
        rows = await collect_usage(connection, team_id=str(team) if team else None, since=since, until=until)
    return usage_response(rows, form)
