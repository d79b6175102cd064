"""What operators look at: what is under way, what failed and why, what is stored, and for what credits went.

Prompts are in none of it. With a `team_id`, each is of that team alone; without, of all.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Select, and_, case, func, literal, select, union_all

from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.tables import images, ledger, records, teams, users
from schnell.generations.records import UNFINISHED
from schnell.generations.searches import lora_at
from schnell.spec import MAX_LORAS

Grouping = Literal["day", "team", "user", "model", "lora"]
GROUPINGS: Final[tuple[Grouping, ...]] = ("day", "team", "user", "model", "lora")
_MOST_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A generation that has not ended. `instance` is the id of the server that draws it."""

    id: str
    team_id: str
    team: str
    user: str
    dialect: str
    status: str
    size: str
    pictures: int
    cost: int
    instance: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Failure:
    """One kind of failure since some time: how often, the last of them, and what it said."""

    code: str
    count: int
    last_at: datetime
    record_id: str
    team: str
    user: str
    message: str


@dataclass(frozen=True, slots=True)
class StoredOfTeam:
    """What a team's stored pictures take, in bytes."""

    team: str
    pictures: int
    bytes: int


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """What was used for one day, team, member, model or LoRA (`name`). A picture with two LoRAs counts for both.

    Members are told apart by their `id`, and named with their team: `Ada (acme)`. A team has its own, others have none.
    """

    name: str
    requests: int
    failed: int
    pictures: int
    credits: int
    id: str


async def list_under_way(
    connection: Connection, team_id: str | None = None, *, record_id: str | None = None
) -> list[UnderWay]:
    """What has not ended, the oldest first, at most 200; with `record_id`, that one alone."""
    query = _with_names(select(records, teams.c.name.label("team"), users.c.name.label("user")))
    query = query.where(records.c.status.in_(UNFINISHED)).order_by(records.c.created_at).limit(_MOST_SHOWN)
    if record_id is not None:
        query = query.where(records.c.id == record_id)
    found = await connection.execute(_of_team(query, records.c.team_id, team_id))
    return [
        UnderWay(
            id=row.id,
            team_id=row.team_id,
            team=row.team,
            user=row.user,
            dialect=row.dialect,
            status=row.status,
            size=f"{row.settings['width']}x{row.settings['height']}",
            pictures=row.settings["num_outputs"],
            cost=row.cost,
            instance=row.instance,
            created_at=row.created_at,
        )
        for row in found
    ]


async def list_failures(connection: Connection, team_id: str | None = None, days: int = 7) -> list[Failure]:
    """What failed in so many days, by kind, the most frequent first."""
    failed = and_(records.c.status == "FAILURE", records.c.created_at >= now() - timedelta(days=days))
    columns = (records.c.error_code, func.count().label("count"), func.max(records.c.created_at).label("last_at"))
    kinds = _of_team(select(*columns).where(failed), records.c.team_id, team_id).group_by(records.c.error_code)
    found = [await _describe(connection, row, failed, team_id) for row in (await connection.execute(kinds)).all()]
    return sorted(found, key=lambda each: -each.count)


async def _describe(connection: Connection, kind: Any, failed: ColumnElement[bool], team_id: str | None) -> Failure:
    names = (teams.c.name.label("team"), users.c.name.label("user"))
    columns = (records.c.id, records.c.error_message, records.c.created_at, *names)
    query = _of_team(_with_names(select(*columns)), records.c.team_id, team_id)
    # IS NOT DISTINCT: a record of an old version may have failed without a code
    same = records.c.error_code.is_not_distinct_from(kind.error_code)
    last = (await connection.execute(query.where(failed, same).order_by(records.c.created_at.desc()).limit(1))).one()
    code = kind.error_code or "UNKNOWN_ERROR"
    return Failure(code, kind.count, last.created_at, last.id, last.team, last.user, last.error_message or "")


async def list_stored(connection: Connection, team_id: str | None = None) -> list[StoredOfTeam]:
    """What each team's stored pictures take, the most first."""
    size = func.coalesce(func.sum(images.c.bytes), 0)
    query = (
        select(teams.c.name, func.count().label("pictures"), size.label("size"))
        .join_from(images, records, records.c.id == images.c.record_id)
        .join(teams, teams.c.id == records.c.team_id)
        .where(images.c.state == "STORED")
        .group_by(teams.c.name)
        .order_by(size.desc(), teams.c.name)
    )
    found = await connection.execute(_of_team(query, records.c.team_id, team_id))
    return [StoredOfTeam(row.name, int(row.pictures), int(row.size)) for row in found]


async def group_usage(
    connection: Connection,
    by: Grouping,
    *,
    team_id: str | None = None,
    since: date | None = None,
    until: date | None = None,
) -> list[UsageGroup]:
    """Usage by day (the newest first), or by team, member, model or LoRA (the most credits first).

    `since` and `until` are days (UTC) that count, too. Records that were deleted count by day, team and member only.
    """
    in_time = [
        *([ledger.c.day >= since.isoformat()] if since else ()),
        *([ledger.c.day <= until.isoformat()] if until else ()),
    ]
    rows = _of_team(_ledger_by(by).where(*in_time), ledger.c.team_id, team_id).subquery()
    spent = func.sum(rows.c.amount)
    query = select(
        rows.c.name,
        func.sum(case((rows.c.kind == "reserve", 1), else_=0)),
        func.sum(case((rows.c.kind == "release", 1), else_=0)),
        func.sum(rows.c.pictures),
        spent,
        rows.c.counted,
    ).group_by(rows.c.name, rows.c.counted)
    query = query.order_by(rows.c.name.desc()) if by == "day" else query.order_by(spent.desc(), rows.c.name)
    found = await connection.execute(query)
    return [
        UsageGroup(name, int(requests), int(failed), int(pictures), int(used), counted)
        for name, requests, failed, pictures, used, counted in found
    ]


def _ledger_by(by: Grouping) -> Select[Any]:
    """The ledger's rows, each with the `name` that it counts for, and the id `counted` of a member or a team."""
    columns = (ledger.c.kind, ledger.c.amount, ledger.c.pictures, literal("").label("counted"))
    if by == "user":
        name = (users.c.name + " (" + teams.c.name + ")").label("name")
        query = select(name, *columns[:-1], ledger.c.user_id.label("counted"))
        return query.join_from(ledger, users, users.c.id == ledger.c.user_id).join(
            teams, teams.c.id == ledger.c.team_id
        )
    if by == "day":
        return select(ledger.c.day.label("name"), *columns)
    if by == "team":
        query = select(teams.c.name.label("name"), *columns[:-1], ledger.c.team_id.label("counted"))
        return query.join_from(ledger, teams, teams.c.id == ledger.c.team_id)
    if by == "model":
        return select(records.c.model.label("name"), *columns).join_from(
            ledger, records, records.c.id == ledger.c.record_id
        )
    # each record once for each LoRA that it names
    used = union_all(
        *(
            select(records.c.id, lora_at(place).label("name")).where(lora_at(place).is_not(None))
            for place in range(MAX_LORAS)
        )
    ).subquery()
    return select(used.c.name, *columns).join_from(ledger, used, used.c.id == ledger.c.record_id)


def _with_names(query: Select[Any]) -> Select[Any]:
    return query.join_from(records, teams, teams.c.id == records.c.team_id).join(users, users.c.id == records.c.user_id)


def _of_team(query: Select[Any], column: ColumnElement[Any], team_id: str | None) -> Select[Any]:
    return query if team_id is None else query.where(column == team_id)
