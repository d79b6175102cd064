"""What every request asks of a large database is found by index, on both databases."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import event, text

from counts import repeats
from schnell.accounts.callers import authenticate
from schnell.accounts.teams import find_members, list_teams
from schnell.benchmarks.large_database import fill
from schnell.benchmarks.server import KEY
from schnell.database.connection import Connection
from schnell.database.inline_sqlite import InlineConnection
from schnell.database.session import Database
from schnell.generations.records import find_record, list_records

LARGE = ("records", "images", "ledger", "api_keys", "members", "users")


@asynccontextmanager
async def statements_of(connection: Connection) -> AsyncIterator[list[tuple[str, Any]]]:
    seen: list[tuple[str, Any]] = []
    if isinstance(connection, InlineConnection):  # prepared statements pass by SQLAlchemy
        connection.driver.set_trace_callback(lambda statement: seen.append((statement, ())))
        yield seen
        connection.driver.set_trace_callback(None)
        return

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        seen.append((statement, values))

    sync = await connection.run_sync(lambda sync: sync)
    event.listen(sync, "before_cursor_execute", note)
    yield seen
    event.remove(sync, "before_cursor_execute", note)


async def plan_of(connection: Connection, statement: str, values: Any) -> list[str]:
    how = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
    rows = await connection.run_sync(lambda sync: sync.exec_driver_sql(how + statement, values).all())
    return [str(row[-1]) for row in rows]


def reads_a_whole_table(step: str) -> bool:
    return any(f"Seq Scan on {table}" in step or step.startswith(f"SCAN {table}") for table in LARGE)


async def test_a_key_and_a_page_of_history_are_found_by_index(database: Database) -> None:
    async with database.write() as connection:
        await fill(connection, keys=repeats(1_000), rows=repeats(100_000))
        await connection.execute(text("ANALYZE"))
    async with database.read() as connection:
        [team] = await list_teams(connection)
        async with statements_of(connection) as seen:
            caller = await authenticate(connection, KEY)
            page = await list_records(connection, team.id, 20)
            for _ in range(20):
                page = await list_records(connection, team.id, 20, page.next_cursor)
            await find_record(connection, team.id, page.records[0].id)
            await find_members(connection, team.id, [record.user_id for record in page.records])
        assert caller.team_id == team.id
        assert len(seen) > 40
        if database.dialect == "postgresql":
            # a table of a few pages is read whole because that is faster: what counts is that an index would do
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
        for statement, values in [seen[0], *seen[-6:]]:
            plan = await plan_of(connection, statement, values)
            assert not any(reads_a_whole_table(step) for step in plan), (statement, plan)
            assert not any("TEMP B-TREE FOR ORDER BY" in step and "records" in statement for step in plan), plan


async def test_pages_meet_without_gap_or_overlap(database: Database) -> None:
    async with database.write() as connection:
        await fill(connection, keys=10, rows=200)
    async with database.read() as connection:
        [team] = await list_teams(connection)
        whole = await list_records(connection, team.id, 100)
        found, cursor = [], None
        while True:
            page = await list_records(connection, team.id, 7, cursor)
            found += [record.id for record in page.records]
            cursor = page.next_cursor
            if cursor is None:
                break
    assert found == [record.id for record in whole.records]
    assert len(found) == 100
