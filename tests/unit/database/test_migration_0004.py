"""From movements without days to movements that name the day of their reservation."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, select

from schnell.accounts.credits import audit, find_reservation, release
from schnell.accounts.teams import find_member, find_team
from schnell.database import migration
from schnell.database.migration import migrate, schema_is_current
from schnell.database.session import Database
from schnell.database.tables import ledger, members, records, teams, users

NOW = datetime.now(UTC)
TODAY = f"{NOW:%Y-%m-%d}"
LONG_AGO = "2020-02-03"


@pytest.fixture
async def old_database(database_url: str) -> AsyncIterator[Database]:
    """As a server of the version with migration 0003 has left it."""

    def upgrade(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(migration.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")

    found = Database(database_url)
    async with found.write() as connection:
        await connection.run_sync(upgrade)
        await add_budget(found, connection, "changed", used=300, label="")
        await add_budget(found, connection, "daily", used=70, label=TODAY)
        for record_id, status in (("drawn", "QUEUED"), ("gone", "DELETED")):
            await connection.execute(records.insert().values(record_row(record_id, "changed", status)))
        rows = [
            # none, then a day for a while, then none again: the counter began at nothing
            *movement("old", "changed", "", LONG_AGO, 1000, back=0),
            *movement("of-a-day", "changed", LONG_AGO, LONG_AGO, 500, back=100),
            *movement("late", "changed", "", TODAY, 200, back=0),
            # set aside and never ended: one that is being drawn, and two of records that were deleted elsewhere
            *movement("drawn", "changed", "", TODAY, 40)[:1],
            *movement("gone", "changed", "", TODAY, 30)[:1],
            *movement("gone-with-its-record", "changed", "", LONG_AGO, 30)[:1],
            *movement("today", "daily", TODAY, TODAY, 70, back=0),
            *movement("yesterday", "daily", LONG_AGO, LONG_AGO, 5, back=0),
        ]
        await connection.execute(ledger.insert(), rows)
    yield found
    await found.close()


async def add_budget(database: Database, connection: Any, name: str, *, used: int, label: str) -> None:
    """A team of one member, both with the same budget."""
    budget = {
        "status": "ACTIVE",
        "credit_limit": 10_000,
        "used_credit": used,
        "budget_window": "day" if label else "none",
        "window_label": label,
        "created_at": NOW,
        "updated_at": NOW,
    }
    await connection.execute(teams.insert().values(budget | {"id": name, "name": name, "may_disable_safety": True}))
    await connection.execute(users.insert().values(id=name, name=name, created_at=NOW))
    own = {"team_id": name, "user_id": name, "role": "ADMIN", "created_by": "SYSTEM", "updated_by": "SYSTEM"}
    await connection.execute(members.insert().values(budget | own))


def movement(record_id: str, team: str, window: str, day: str, amount: int, *, back: int = 0) -> list[dict[str, Any]]:
    row = {
        "team_id": team,
        "user_id": team,
        "record_id": record_id,
        "team_window": window,
        "member_window": window,
        "pictures": 0,
        "day": day,
        "created_at": NOW - timedelta(minutes=1),
    }
    return [row | {"kind": "reserve", "amount": amount}, row | {"kind": "settle", "amount": -back, "pictures": 1}]


def record_row(record_id: str, team: str, status: str) -> dict[str, Any]:
    texts = dict.fromkeys(("dialect", "type", "model"), "x")
    objects: dict[str, Any] = {"prompt_object": {}, "settings": {}, "response_object": {}, "receipts": []}
    whose = {"id": record_id, "team_id": team, "user_id": team, "instance": "main"}
    return {**texts, **objects, **whose, "status": status, "cost": 40, "created_at": NOW}


async def test_from_0003_counters_become_the_ledger_and_deleted_records_hold_nothing(old_database: Database) -> None:
    await migrate(old_database)
    async with old_database.read() as connection:
        assert await schema_is_current(connection)
        assert await audit(connection) == []
        for name, used in (("changed", 1000 + 400 + 200 + 40), ("daily", 70)):
            assert (await find_team(connection, name)).used_credit == used
            assert (await find_member(connection, name)).used_credit == used
        query = select(ledger.c.record_id, ledger.c.amount).where(ledger.c.kind == "release")
        found = sorted(map(tuple, await connection.execute(query)))
        assert found == [("gone", -30), ("gone-with-its-record", -30)]


async def test_from_0003_what_was_being_drawn_is_still_released_in_its_own_budget(old_database: Database) -> None:
    await migrate(old_database)
    async with old_database.write() as connection:
        reservation = await find_reservation(connection, "drawn")
        assert reservation is not None
        await release(connection, reservation)
        assert (await find_team(connection, "changed")).used_credit == 1600
        assert await audit(connection) == []
