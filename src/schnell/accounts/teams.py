"""Teams, users and memberships: make, list, find and change them."""

import unicodedata
from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import Row, Select, bindparam, select, update
from sqlalchemy.exc import IntegrityError

from schnell.accounts.credits import count_again, effective_use
from schnell.accounts.identity import DEFAULT_CREDIT_LIMIT, SYSTEM, BudgetWindow, Member, Role, Status, Team
from schnell.clock import now
from schnell.database.connection import Connection, PreparedIn
from schnell.database.tables import members, new_id, teams, users
from schnell.errors import ConflictError, FieldProblem, InvalidFieldError, NotFoundError

#: How many ids or names a message lists.
_MOST_NAMED: Final = 10


async def create_team(
    connection: Connection,
    name: str,
    *,
    credit_limit: int = DEFAULT_CREDIT_LIMIT,
    budget_window: BudgetWindow = "none",
    owner: str | None = None,
) -> Team:
    """Make a team with one ADMIN member, called `owner` (or as the team).

    Raises:
        InvalidFieldError: the name is empty.
        ConflictError: a team has this name already. The transaction must be rolled back: PostgreSQL runs nothing more
            in it.
    """
    moment = now()
    row = {
        "id": new_id(),
        "name": check_name(name),
        "status": "ACTIVE",
        "credit_limit": credit_limit,
        "used_credit": 0,
        "budget_window": budget_window,
        "window_label": "",
        "may_disable_safety": True,
        "may_disable_watermark": False,
        "created_at": moment,
        "updated_at": moment,
    }
    try:
        await connection.execute(teams.insert().values(row))
    except IntegrityError as cause:
        raise ConflictError(f"a team is called {name!r} already") from cause
    await add_member(connection, str(row["id"]), owner or name, role="ADMIN", credit_limit=credit_limit)
    return await find_team(connection, str(row["id"]))


async def list_teams(connection: Connection) -> list[Team]:
    """Every team, oldest first."""
    return [_to_team(row) for row in await connection.execute(select(teams).order_by(teams.c.created_at))]


async def find_only_team(connection: Connection) -> Team:
    """The team of a server that has one.

    Raises:
        NotFoundError: there is none, or more than one to choose from.
    """
    found = await list_teams(connection)
    if len(found) != 1:
        names = ", ".join(repr(team.name) for team in found[:_MOST_NAMED])
        raise NotFoundError(f"say which team: there are {names}" if found else "there is no team yet")
    return found[0]


async def find_team(connection: Connection, name_or_id: str) -> Team:
    """The team with this id or name.

    Raises:
        NotFoundError: there is none.
    """
    query = select(teams).where((teams.c.id == name_or_id) | (teams.c.name == name_or_id))
    row = (await connection.execute(query)).first()
    if row is None:
        raise NotFoundError(f"no team is called {name_or_id!r}")
    return _to_team(row)


async def change_team(connection: Connection, team_id: str, **changes: Any) -> Team:
    """Set columns of a team (`status`, `credit_limit`, `budget_window`, `may_disable_safety`,
    `may_disable_watermark`).

    A window that is set, also to what it was, has used what the ledger says of it.

    Raises:
        NotFoundError: there is no such team.
    """
    if changes:
        await connection.execute(update(teams).where(teams.c.id == team_id).values(updated_at=now(), **changes))
    if "budget_window" in changes:
        await count_again(connection, team_id)
    return await find_team(connection, team_id)


async def add_member(  # noqa: PLR0913 - one argument a column
    connection: Connection,
    team_id: str,
    user_name: str,
    *,
    role: Role = "MEMBER",
    credit_limit: int | None = None,
    budget_window: BudgetWindow = "none",
    avatar: str | None = None,
    created_by: str = SYSTEM,
) -> Member:
    """Make a user and put them into a team. Their credit limit is the team's unless given.

    Raises:
        NotFoundError: there is no such team.
        InvalidFieldError: the user has no name, or is called as the server calls itself.
    """
    check_user_name(user_name)
    team = await find_team(connection, team_id)
    moment = now()
    user_id = new_id()
    await connection.execute(users.insert().values(id=user_id, name=user_name, avatar=avatar, created_at=moment))
    await connection.execute(
        members.insert().values(
            team_id=team.id,
            user_id=user_id,
            status="ACTIVE",
            role=role,
            credit_limit=team.credit_limit if credit_limit is None else credit_limit,
            used_credit=0,
            budget_window=budget_window,
            window_label="",
            created_at=moment,
            created_by=created_by,
            updated_at=moment,
            updated_by=created_by,
        )
    )
    return await find_member(connection, team.id, user_id)


def check_name(name: str) -> str:
    """`name` if it can be read. Raises InvalidFieldError."""
    if not name.strip():
        raise InvalidFieldError(FieldProblem("name", "must not be empty"))
    return name


def check_user_name(name: str) -> None:
    """Refuse an empty name, and the one by which the audit log and lists call the server. Raises InvalidFieldError."""
    if unicodedata.normalize("NFKC", check_name(name)).strip().upper() == SYSTEM:
        raise InvalidFieldError(FieldProblem("name", f"{SYSTEM} is what the server calls itself: choose another name"))


async def list_members(connection: Connection, team_id: str | None = None) -> list[Member]:
    """The members of a team, or of all, oldest first."""
    query = _member_query().order_by(members.c.created_at)
    if team_id:
        query = query.where(members.c.team_id == team_id)
    return [_to_member(row) for row in await connection.execute(query)]


async def find_members(connection: Connection, team_id: str, user_ids: Iterable[str]) -> list[Member]:
    """Those of these users who are members of the team, in no order."""
    wanted = sorted(set(user_ids))
    found = await _MEMBERS.run(connection, wanted, {"team": team_id}) if wanted else None
    return [_to_member(row) for row in found.rows] if found else []


async def find_member(connection: Connection, team_id: str, user: str | None = None) -> Member:
    """The member with this user id or name; without one, the team's first.

    Raises:
        NotFoundError: there is none.
        InvalidFieldError: several have this name.
    """
    query = _member_query().where(members.c.team_id == team_id).order_by(members.c.created_at)
    query = query.limit(1) if user is None else query.where((users.c.id == user) | (users.c.name == user))
    rows = (await connection.execute(query)).all()
    if not rows:
        raise NotFoundError("the team has no members" if user is None else f"the team has no member {user!r}")
    # an id names one person, whatever another is called
    found = [row for row in rows if row.user_id == user] or rows
    if len(found) > 1:
        ids = ", ".join(row.user_id for row in found[:_MOST_NAMED])
        problem = f"{len(found)} members are called {user!r}: say which by the id, one of {ids}"
        raise InvalidFieldError(FieldProblem("user", problem))
    return _to_member(found[0])


async def change_member(
    connection: Connection, team_id: str, user_id: str, *, updated_by: str = SYSTEM, **changes: Any
) -> Member:
    """Set columns of a membership (`status`, `role`, `credit_limit`, `budget_window`), as `change_team` does.

    Raises:
        NotFoundError: there is no such member.
    """
    await connection.execute(
        update(members)
        .where(members.c.team_id == team_id, members.c.user_id == user_id)
        .values(updated_at=now(), updated_by=updated_by, **changes)
    )
    if "budget_window" in changes:
        await count_again(connection, team_id, user_id)
    return await find_member(connection, team_id, user_id)


async def set_operator(connection: Connection, user_id: str, *, operator: bool) -> None:
    """Make a user an operator of the server, or no longer one: their keys and sessions follow at once."""
    await connection.execute(update(users).where(users.c.id == user_id).values(operator=operator))


def active_status(*, active: bool) -> Status:
    """The status that an on-off switch stands for."""
    return "ACTIVE" if active else "INACTIVE"


def _member_query() -> Select[Any]:
    person = (users.c.name.label("user_name"), users.c.avatar.label("user_avatar"), users.c.operator)
    return select(members, *person).join(users, users.c.id == members.c.user_id)


_MEMBERS: Final = PreparedIn(
    lambda user_ids: _member_query().where(members.c.team_id == bindparam("team"), members.c.user_id.in_(user_ids))
)


def _to_team(row: Row[Any]) -> Team:
    values = {name: getattr(row, name) for name in Team.__dataclass_fields__}
    # the stored counter may be that of a window that has ended
    return Team(**(values | {"used_credit": effective_use(row)}))


def _to_member(row: Row[Any]) -> Member:
    values = {name: getattr(row, name) for name in Member.__dataclass_fields__}
    return Member(**(values | {"used_credit": effective_use(row)}))
