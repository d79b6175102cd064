"""What was used, by day, team, user and key, summed up from the credit ledger; also as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date
from typing import Any

from sqlalchemy import case, func, select

from schnell.database.connection import Connection
from schnell.database.tables import api_keys, ledger, teams, users


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one key was used for on one day (UTC). `failed` of the `requests` ended without a picture and cost nothing.

    `key` is the shown beginning of the key, `credits` what was charged, and what is still reserved. `user_id` tells
    people of one name apart; it stands last, where it moves no column that somebody reads already.
    """

    day: str
    team: str
    user: str
    key: str
    requests: int
    failed: int
    pictures: int
    credits: int
    user_id: str


async def collect_usage(
    connection: Connection,
    *,
    team_id: str | None = None,
    user_id: str | None = None,
    since: date | None = None,
    until: date | None = None,
) -> list[UsageRow]:
    """Usage by day, team, user and key, the newest day first. `since` and `until` are days that count, too."""
    grouping = (ledger.c.day, teams.c.name, users.c.name, api_keys.c.prefix)
    query = (
        select(
            *grouping,
            # every request writes one row of this kind, and one of another when it ends
            func.sum(case((ledger.c.kind == "reserve", 1), else_=0)),
            func.sum(case((ledger.c.kind == "release", 1), else_=0)),
            func.sum(ledger.c.pictures),
            func.sum(ledger.c.amount),
            ledger.c.user_id,
        )
        .join_from(ledger, teams, teams.c.id == ledger.c.team_id)
        .join(users, users.c.id == ledger.c.user_id)
        .join(api_keys, api_keys.c.id == ledger.c.key_id, isouter=True)
        # by ids: two people, or two keys that an operator has chosen, may be called the same
        .group_by(*grouping, ledger.c.user_id, ledger.c.key_id)
        .order_by(ledger.c.day.desc(), teams.c.name, users.c.name, api_keys.c.prefix, ledger.c.user_id)
    )
    if team_id:
        query = query.where(ledger.c.team_id == team_id)
    if user_id:
        query = query.where(ledger.c.user_id == user_id)
    if since:
        query = query.where(ledger.c.day >= since.isoformat())
    if until:
        query = query.where(ledger.c.day <= until.isoformat())
    return [
        UsageRow(day, team, user, key or "", int(requests), int(failed), int(pictures), int(spent), user_id)
        for day, team, user, key, requests, failed, pictures, spent, user_id in await connection.execute(query)
    ]


def write_csv(rows: Sequence[Any], columns: Sequence[str] | None = None) -> str:
    """Values as CSV, with the names of `columns` in the first line (those of `UsageRow` if absent).

    A name cannot become a formula in a spreadsheet.
    """
    names = columns or [field.name for field in fields(UsageRow)]
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(names)
    writer.writerows([_without_formula(getattr(row, name)) for name in names] for row in rows)
    return file.getvalue()


def _without_formula(value: Any) -> Any:
    # a spreadsheet computes a cell that begins like this; behind a quote it is text (OWASP: CSV injection)
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")) else value
