"""The operator's API below `/api/admin`: teams, members, keys, usage. It needs a key with the scope `admin`."""

from dataclasses import asdict
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

from fastapi import APIRouter, Query, Request, status
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass
from starlette.responses import Response

from schnell.accounts import keys, teams
from schnell.accounts.identity import (
    DEFAULT_CREDIT_LIMIT,
    DEFAULT_SCOPES,
    ApiKey,
    BudgetWindow,
    Member,
    Role,
    Scope,
    Status,
    Team,
)
from schnell.accounts.usage import collect_usage
from schnell.web.auth import SECURITY, Administrator
from schnell.web.fields import whole_number
from schnell.web.native.account import USAGE_ANSWER, Since, Until, usage_response
from schnell.web.openapi import error_answers
from schnell.web.services import services_of

router = APIRouter(
    prefix="/api/admin", tags=["admin"], dependencies=SECURITY, responses=error_answers(400, 401, 403, 404, 409)
)
_MAX_CREDITS: Final = 10**15
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*[^\x00-\x20][^\x00-\x1f]*$")
]
Credits = Annotated[int, Field(ge=0, le=_MAX_CREDITS), BeforeValidator(whole_number)]


def _only_text(value: Any) -> Any:
    """Refuse numbers, which pydantic would read as seconds since 1970."""
    if not isinstance(value, str):
        raise ValueError("must be a moment such as 2027-01-31T00:00:00Z")  # noqa: TRY004 - what pydantic understands
    return value


# Bodies


class _Body(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)

    def given(self) -> dict[str, Any]:
        """The fields that have a value: sent and not null, or with a default."""
        return self.model_dump(exclude_none=True)


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
    may_disable_watermark: bool | None = None


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


# Answers: the values of `schnell.accounts.identity`, none of which holds a secret, with their fields in camel case. A
# field that is declared again here only gains the example that the OpenAPI document shows.

_Id = Annotated[str, Field(examples=["8a1f6f3c-1b5d-4b6e-9a70-6f0b7a5c9d33"])]
_CAMEL: Final = ConfigDict(alias_generator=to_camel, validate_by_name=True)
_Shown = TypeVar("_Shown", "ShownTeam", "ShownMember", "ShownKey")


@dataclass(frozen=True, slots=True, config=_CAMEL)
class ShownTeam(Team):
    """A team."""

    id: _Id


@dataclass(frozen=True, slots=True, config=_CAMEL)
class ShownMember(Member):
    """A member."""

    team_id: _Id


@dataclass(frozen=True, slots=True, config=_CAMEL)
class ShownKey(ApiKey):
    """A key, without its secret."""

    id: _Id


class MadeKey(BaseModel):
    """A key and its secret, which is shown this once."""

    key: Annotated[str, Field(examples=["schnell_Xk3fQ9…"])]
    details: ShownKey


def _show(form: type[_Shown], value: Team | Member | ApiKey) -> _Shown:
    return form(**asdict(value))


# Routes


@router.get("/teams", summary="Teams")
async def list_teams(request: Request, _caller: Administrator) -> list[ShownTeam]:
    """Every team, oldest first."""
    async with services_of(request).database.read() as connection:
        return [_show(ShownTeam, team) for team in await teams.list_teams(connection)]


@router.post("/teams", summary="New team", status_code=status.HTTP_201_CREATED)
async def create_team(request: Request, _caller: Administrator, body: NewTeam) -> ShownTeam:
    """Make a team with one ADMIN member."""
    async with services_of(request).database.write() as connection:
        return _show(ShownTeam, await teams.create_team(connection, **body.given()))


@router.patch("/teams/{team_id}", summary="Change a team")
async def change_team(request: Request, _caller: Administrator, team_id: UUID, body: TeamChange) -> ShownTeam:
    """Change limits, the budget's window, or the status."""
    async with services_of(request).database.write() as connection:
        return _show(ShownTeam, await teams.change_team(connection, str(team_id), **body.given()))


@router.get("/teams/{team_id}/users", summary="Members")
async def list_members(request: Request, _caller: Administrator, team_id: UUID) -> list[ShownMember]:
    """A team's members, oldest first."""
    async with services_of(request).database.read() as connection:
        team = await teams.find_team(connection, str(team_id))
        return [_show(ShownMember, each) for each in await teams.list_members(connection, team.id)]


@router.post("/teams/{team_id}/users", summary="New member", status_code=status.HTTP_201_CREATED)
async def add_member(request: Request, caller: Administrator, team_id: UUID, body: NewMember) -> ShownMember:
    """Make a user and put them into the team."""
    given = body.given()
    async with services_of(request).database.write() as connection:
        member = await teams.add_member(
            connection, str(team_id), given.pop("name"), created_by=caller.user_name, **given
        )
        return _show(ShownMember, member)


@router.patch("/teams/{team_id}/users/{user_id}", summary="Change a member")
async def change_member(
    request: Request, caller: Administrator, team_id: UUID, user_id: UUID, body: MemberChange
) -> ShownMember:
    """Change a member's role, limits or status."""
    async with services_of(request).database.write() as connection:
        member = await teams.change_member(
            connection, str(team_id), str(user_id), updated_by=caller.user_name, **body.given()
        )
        return _show(ShownMember, member)


@router.get("/teams/{team_id}/keys", summary="Keys")
async def list_keys(request: Request, _caller: Administrator, team_id: UUID) -> list[ShownKey]:
    """A team's keys, without their secrets."""
    async with services_of(request).database.read() as connection:
        team = await teams.find_team(connection, str(team_id))
        return [_show(ShownKey, key) for key in await keys.list_keys(connection, team.id)]


@router.post("/teams/{team_id}/keys", summary="New key", status_code=status.HTTP_201_CREATED)
async def create_key(request: Request, _caller: Administrator, team_id: UUID, body: NewKey) -> MadeKey:
    """Make a key. Its secret is in this answer and nowhere else."""
    given = body.given()
    async with services_of(request).database.write() as connection:
        team = await teams.find_team(connection, str(team_id))
        member = await teams.find_member(connection, team.id, given.pop("user", None))
        made = await keys.create_key(connection, team.id, member.user_id, **given)
        return MadeKey(key=made.secret, details=_show(ShownKey, made.key))


@router.delete("/keys/{key_id}", summary="Revoke a key")
async def revoke_key(request: Request, _caller: Administrator, key_id: UUID) -> ShownKey:
    """Make a key useless from now on."""
    async with services_of(request).database.write() as connection:
        return _show(ShownKey, await keys.revoke_key(connection, str(key_id)))


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
    async with services_of(request).database.scan() as connection:
        rows = await collect_usage(connection, team_id=str(team) if team else None, since=since, until=until)
    return usage_response(rows, form)
