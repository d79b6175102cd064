"""The administrators' API below `/api/admin`: teams, members, keys, usage.

A key with the scope `admin` manages its own team; one with the scope `operator` every team, and makes new ones.
"""

import re
from dataclasses import asdict
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

from fastapi import APIRouter, Query, Request, status
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass
from starlette.responses import Response

from schnell.accounts import administration, keys, teams
from schnell.accounts.administration import check_may_change, check_not_lent, check_team
from schnell.accounts.audit import actor_of
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
from schnell.errors import ForbiddenError
from schnell.validation import Like
from schnell.web.auth import Administrator, Operator
from schnell.web.fields import whole_number
from schnell.web.native.account import USAGE_ANSWER, Since, Until, UsageForm, usage_response
from schnell.web.openapi import KeyedRoute, error_answers
from schnell.web.services import services_of

router = APIRouter(
    prefix="/api/admin", tags=["admin"], route_class=KeyedRoute, responses=error_answers(400, 401, 403, 404, 409)
)
_MAX_CREDITS: Final = 10**15
Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200),
    Like(r"[^\x00-\x1f]*[^\x00-\x20][^\x00-\x1f]*", "must hold more than spaces, and neither tabs nor line breaks"),
]
RateLimit = Annotated[
    str,
    Like(r"[1-9][0-9]{0,6}/(second|minute|hour|day)", "must look like 60/minute or 1000/day"),
    Field(examples=["60/minute"]),
]
Credits = Annotated[int, Field(ge=0, le=_MAX_CREDITS), BeforeValidator(whole_number)]


_DATED: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ].*")


def _read_moment(value: Any) -> Any:
    """Refuse all but RFC 3339: pydantic would read a number, also as text, as seconds since 1970."""
    if not isinstance(value, str) or not _DATED.fullmatch(value):
        raise ValueError("must be a moment such as 2027-01-31T00:00:00Z")
    return value


#: A moment with its zone, in a body or a query.
Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_read_moment)]


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
    avatar: Annotated[str, Field(max_length=2000), Like(r"https://[!-~]+", "must be an https address")] | None = None


class MemberChange(_Body):
    """What to change about a member; what is absent stays."""

    status: Status | None = None
    role: Role | None = None
    credit_limit: Annotated[Credits | None, Field(examples=[100_000])] = None
    budget_window: BudgetWindow | None = None
    operator: Annotated[bool | None, Field(description="An operator of the server; only operators may say so.")] = None


class NewKey(_Body):
    """A key for a member, by id or name. If absent: for the caller; in a team that is not theirs, for its first.

    Its end is in the future.
    """

    user: Name | None = None
    name: Name = "default"
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=4)] = list(DEFAULT_SCOPES)
    rate_limit: RateLimit | None = None
    expires_at: Moment | None = None


class KeyChange(_Body):
    """What to change about a key; what is absent stays. A limit or an end that is null is taken away.

    A new end is in the future.
    """

    name: Annotated[Name | None, Field(examples=["notebook"])] = None
    rate_limit: RateLimit | None = None
    expires_at: Annotated[Moment | None, Field(examples=["2027-01-31T00:00:00Z"])] = None

    def changes(self) -> dict[str, Any]:
        """The columns to set: a name that is null is one that was not sent, as a key must have one."""
        sent = self.model_dump(exclude_unset=True)
        return {name: value for name, value in sent.items() if name != "name" or value is not None}


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


def show(form: type[_Shown], value: Team | Member | ApiKey) -> _Shown:
    """A team, member or key as answers show it."""
    return form(**asdict(value))


# Routes


@router.get("/teams", summary="Teams")
async def list_teams(request: Request, caller: Administrator) -> list[ShownTeam]:
    """Every team, oldest first; for administrators of a team, that team."""
    async with services_of(request).database.read() as connection:
        if caller.is_operator:
            return [show(ShownTeam, team) for team in await teams.list_teams(connection)]
        return [show(ShownTeam, await teams.find_team(connection, caller.team_id))]


@router.post("/teams", summary="New team", status_code=status.HTTP_201_CREATED)
async def create_team(request: Request, caller: Operator, body: NewTeam) -> ShownTeam:
    """Make a team with one ADMIN member. For operators."""
    check_not_lent(caller)
    async with services_of(request).database.write() as connection:
        return show(ShownTeam, await administration.create_team(connection, actor_of(caller), **body.given()))


@router.patch("/teams/{team_id}", summary="Change a team")
async def change_team(request: Request, caller: Operator, team_id: UUID, body: TeamChange) -> ShownTeam:
    """Change limits, the budget's window, or the status. For operators."""
    async with services_of(request).database.write() as connection:
        changed = await administration.change_team(connection, actor_of(caller), str(team_id), **body.given())
        return show(ShownTeam, changed)


@router.get("/teams/{team_id}/users", summary="Members")
async def list_members(request: Request, caller: Administrator, team_id: UUID) -> list[ShownMember]:
    """A team's members, oldest first."""
    check_team(caller, str(team_id))
    async with services_of(request).database.read() as connection:
        team = await teams.find_team(connection, str(team_id))
        return [show(ShownMember, each) for each in await teams.list_members(connection, team.id)]


@router.post("/teams/{team_id}/users", summary="New member", status_code=status.HTTP_201_CREATED)
async def add_member(request: Request, caller: Administrator, team_id: UUID, body: NewMember) -> ShownMember:
    """Make a user and put them into the team."""
    check_team(caller, str(team_id))
    check_not_lent(caller)
    async with services_of(request).database.write() as connection:
        member = await administration.add_member(connection, actor_of(caller), str(team_id), **body.given())
        return show(ShownMember, member)


@router.patch("/teams/{team_id}/users/{user_id}", summary="Change a member")
async def change_member(
    request: Request, caller: Administrator, team_id: UUID, user_id: UUID, body: MemberChange
) -> ShownMember:
    """Change a member's role, limits or status. What concerns operators of the server, only operators may change."""
    check_team(caller, str(team_id))
    given = body.given()
    if given.keys() & {"operator", "role"}:
        check_not_lent(caller)
    if "operator" in given and not caller.is_operator:
        raise ForbiddenError("only operators may say who is an operator of this server")
    async with services_of(request).database.write() as connection:
        check_may_change(caller, await teams.find_member(connection, str(team_id), str(user_id)))
        member = await administration.change_member(connection, actor_of(caller), str(team_id), str(user_id), **given)
        return show(ShownMember, member)


@router.get("/teams/{team_id}/keys", summary="Keys")
async def list_keys(request: Request, caller: Administrator, team_id: UUID) -> list[ShownKey]:
    """A team's keys with their owners, without their secrets."""
    check_team(caller, str(team_id))
    await services_of(request).last_uses.write(services_of(request).database)
    async with services_of(request).database.read() as connection:
        team = await teams.find_team(connection, str(team_id))
        return [show(ShownKey, key) for key in await keys.list_keys(connection, team.id)]


@router.post("/teams/{team_id}/keys", summary="New key", status_code=status.HTTP_201_CREATED)
async def create_key(request: Request, caller: Administrator, team_id: UUID, body: NewKey) -> MadeKey:
    """Make a key for a member, whose name is in the answer. Its secret is in this answer and nowhere else."""
    check_team(caller, str(team_id))
    check_not_lent(caller)
    given = body.given()
    # a key belongs to a person: without a name, to the one who asks for it, and not to whoever came first
    user = given.pop("user", caller.user_id if caller.team_id == str(team_id) else None)
    async with services_of(request).database.write() as connection:
        member = await teams.find_member(connection, str(team_id), user)
        check_may_change(caller, member)
        made = await administration.create_key(connection, actor_of(caller), member, **given)
        return MadeKey(key=made.secret, details=show(ShownKey, made.key))


@router.patch("/keys/{key_id}", summary="Change a key")
async def change_key(request: Request, caller: Administrator, key_id: UUID, body: KeyChange) -> ShownKey:
    """Change a key's rate limit, when it ends, or its name. What it may stays: for that, make another."""
    check_not_lent(caller)
    async with services_of(request).database.write() as connection:
        key = await keys.find_key(connection, str(key_id))
        check_team(caller, key.team_id)
        check_may_change(caller, await teams.find_member(connection, key.team_id, key.user_id))
        return show(ShownKey, await administration.change_key(connection, actor_of(caller), key, **body.changes()))


@router.delete("/keys/{key_id}", summary="Revoke a key")
async def revoke_key(request: Request, caller: Administrator, key_id: UUID) -> ShownKey:
    """Make a key useless from now on, and end the sessions of browsers that signed in with it."""
    async with services_of(request).database.write() as connection:
        key = await keys.find_key(connection, str(key_id))
        check_team(caller, key.team_id)
        check_may_change(caller, await teams.find_member(connection, key.team_id, key.user_id))
        return show(ShownKey, await administration.revoke_key(connection, actor_of(caller), key.id))


@router.get("/usage", summary="Usage of all teams", responses=USAGE_ANSWER)
async def usage(  # noqa: PLR0913, PLR0917 - one argument a parameter
    request: Request,
    caller: Administrator,
    team: Annotated[UUID | None, Query(description="Only this team's.")] = None,
    since: Since = None,
    until: Until = None,
    form: UsageForm = "json",
) -> Response:
    """Requests, pictures and credits by day, team, user and key; for administrators of a team, that team's."""
    team_id = str(team) if team else None if caller.is_operator else caller.team_id
    if team_id:
        check_team(caller, team_id)
    async with services_of(request).database.scan() as connection:
        rows = await collect_usage(connection, team_id=team_id, since=since, until=until)
    return usage_response(rows, form)
