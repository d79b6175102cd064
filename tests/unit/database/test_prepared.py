"""A prepared statement gives what SQLAlchemy would, on both databases."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import bindparam, select, update
from sqlalchemy.exc import DBAPIError

from schnell.accounts.keys import prepare_first_start
from schnell.database.connection import Prepared
from schnell.database.session import Database
from schnell.database.tables import images, records, teams

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
RECORD = {
    "id": "a",
    "team_id": "t",
    "user_id": "u",
    "instance": "main",
    "dialect": "onemin",
    "type": "IMAGE_GENERATOR",
    "model": "m",
    "status": "QUEUED",
    "prompt_object": {"prompt": "é"},
    "settings": {},
    "response_object": {},
    "receipts": [{"seed": 1}],
    "cost": 7,
    "metadata": None,
    "created_at": NOON,
}
FIND = Prepared(select(records).where(records.c.id == bindparam("wanted")))


async def test_values_come_back_as_they_went_in(database: Database) -> None:
    async with database.write() as connection:
        await Prepared(records.insert()).run(connection, RECORD)
    async with database.read() as connection:
        found = (await FIND.run(connection, {"wanted": "a"})).first
        plain = (await connection.execute(select(records))).one()
    assert found is not None
    assert tuple(found) == tuple(plain)
    assert (found.created_at, found.prompt_object, found.metadata, found.rating) == (NOON, {"prompt": "é"}, None, None)


async def test_a_statement_gives_the_rows_that_it_returns(database: Database) -> None:
    async with database.write() as connection:
        await prepare_first_start(connection, "a-key-for-testing")
        statement = update(teams).where(teams.c.credit_limit >= bindparam("least")).returning(teams.c.used_credit)
        spend = Prepared(statement.values(used_credit=teams.c.used_credit + 3))
        assert [row.used_credit for row in (await spend.run(connection, {"least": 1})).rows] == [3]
        assert (await spend.run(connection, {"least": 10**12})).first is None


async def test_what_no_row_matches_changes_nothing(database: Database) -> None:
    start = Prepared(update(records).where(records.c.id == bindparam("of_record"), records.c.status == "QUEUED"))
    async with database.write() as connection:
        await Prepared(records.insert()).run(connection, RECORD)
        values = {"of_record": "a", "status": "PROCESSING", "started_at": NOON}
        assert (await start.run(connection, values)).changed == 1
        assert (await start.run(connection, values)).changed == 0


async def test_a_block_that_raises_leaves_nothing_behind(database: Database) -> None:
    async def give_up() -> None:
        async with database.write() as connection:
            await Prepared(records.insert()).run(connection, RECORD)
            await connection.execute(select(records))  # SQLAlchemy has begun a transaction of its own
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await give_up()
    async with database.write() as connection:
        assert (await FIND.run(connection, {"wanted": "a"})).first is None


async def test_what_the_database_refuses_is_sqlalchemys_error(database: Database) -> None:
    orphan = {"key": "k", "record_id": "none", "output": 0, "state": "STORED", "media_type": "image/webp", "bytes": 1}
    with pytest.raises(DBAPIError):
        async with database.write() as connection:
            await Prepared(images.insert()).run(connection, orphan | {"created_at": NOON})
    async with database.write() as connection:
        assert (await FIND.run(connection, {"wanted": "a"})).first is None
