from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, inspect

import schnell.database
from databases import new_postgres_url
from schnell.database.migration import migrate, schema_is_current
from schnell.database.session import Database
from schnell.database.tables import metadata

NOW = datetime.now(UTC)
TODAY = f"{NOW:%Y-%m-%d}"
LONG_AGO = "2020-02-03"

Schema = Mapping[str, Mapping[str, Any]]
Rows = Mapping[str, list[dict[str, Any]]]

CONFIG: Final = Config()
CONFIG.set_main_option("script_location", str(Path(schnell.database.__file__).parent / "migrations"))
REVISIONS: Final = [each.revision for each in ScriptDirectory.from_config(CONFIG).walk_revisions()]
MOMENT: Final = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def another_url(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> str:
    """A second empty database of the same kind."""
    return f"sqlite:{tmp_path / 'other.db'}" if database_url.startswith("sqlite") else new_postgres_url()


def schema_of(connection: Connection) -> Schema:
    """Everything that a schema says of its tables, in an order of its own."""
    found = inspect(connection)
    return {
        table: {
            "columns": [
                (
                    column["name"],
                    str(column["type"]),
                    column["nullable"],
                    column["default"],
                    column.get("autoincrement"),
                )
                for column in found.get_columns(table)
            ],
            "primary key": found.get_pk_constraint(table),
            "foreign keys": sorted(found.get_foreign_keys(table), key=str),
            "unique": sorted(found.get_unique_constraints(table), key=str),
            # the condition of an index is an object that equals nothing else
            "indexes": sorted(
                repr(index | {"dialect_options": repr_of_options(index)}) for index in found.get_indexes(table)
            ),
        }
        for table in sorted(found.get_table_names())
    }


def repr_of_options(index: Any) -> str:
    return str({name: str(value) for name, value in index.get("dialect_options", {}).items()})


def rows_of(connection: Connection) -> Rows:
    """Every row of every table, as the database itself holds it."""
    return {
        table.name: [dict(row._mapping) for row in connection.execute(table.select())] for table in _tables(connection)
    }


def fill(connection: Connection) -> None:
    """Write two rows into every table that there is."""
    for table in _tables(connection):
        if table.name != "alembic_version":
            connection.execute(table.insert(), [_row(table, number) for number in (1, 2)])


def _tables(connection: Connection) -> Iterator[Table]:
    reflected = MetaData()
    reflected.reflect(connection)
    yield from reflected.sorted_tables


def _row(table: Table, number: int) -> dict[str, Any]:
    # of the same number everywhere: foreign keys find their rows
    kinds = {
        str: f"{number}",
        int: number,
        bool: number == 1,
        datetime: MOMENT,
        object: {"number": number},
        list: [number],
    }
    return {column.name: kinds[column.type.python_type] for column in table.columns}


def upgrade_to(revision: str, connection: Connection) -> None:
    CONFIG.attributes["connection"] = connection
    command.upgrade(CONFIG, revision)


async def test_the_migrations_make_exactly_the_tables(database: Database) -> None:
    def compare(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with database.read() as connection:
        assert await connection.run_sync(compare) == []
        assert await schema_is_current(connection)


async def test_migrating_again_changes_neither_schema_nor_rows(database: Database) -> None:
    async with database.write() as connection:
        await connection.run_sync(fill)
        schema, rows = await connection.run_sync(schema_of), await connection.run_sync(rows_of)
    await migrate(database)
    async with database.read() as connection:
        assert await connection.run_sync(schema_of) == schema
        assert await connection.run_sync(rows_of) == rows
    assert schema.keys() == {*metadata.tables, "alembic_version"}
    assert all(len(rows[table]) == 2 for table in metadata.tables)


@pytest.mark.parametrize("revision", REVISIONS[1:])
async def test_a_database_of_an_older_version_gets_the_schema_of_a_fresh_one_and_keeps_its_rows(
    database_url: str, another_url: str, revision: str
) -> None:
    older, fresh = Database(database_url), Database(another_url)
    async with older.write() as connection:
        await connection.run_sync(lambda sync: upgrade_to(revision, sync))
        await connection.run_sync(fill)
        kept = await connection.run_sync(rows_of)
        assert not await schema_is_current(connection)
    await migrate(older)
    await migrate(fresh)
    async with older.read() as connection, fresh.read() as other:
        assert await schema_is_current(connection)
        assert await connection.run_sync(schema_of) == await other.run_sync(schema_of)
        found = await connection.run_sync(rows_of)
    assert len(kept) > 1
    for table, rows in kept.items():
        if table == "alembic_version":
            continue
        assert [{name: row[name] for name in rows[0]} for row in found[table]] == rows
    await older.close()
    await fresh.close()


async def test_a_migration_that_fails_leaves_the_database_as_it_was(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(database_url)
    async with database.write() as connection:
        await connection.run_sync(lambda sync: upgrade_to(REVISIONS[-1], sync))
        await connection.run_sync(fill)
        before = await connection.run_sync(schema_of), await connection.run_sync(rows_of)

    def interrupted(sync: Connection) -> None:
        upgrade_to("head", sync)
        raise KeyboardInterrupt

    monkeypatch.setattr("schnell.database.migration._upgrade", interrupted)
    with pytest.raises(KeyboardInterrupt):
        await migrate(database)
    async with database.read() as connection:
        assert (await connection.run_sync(schema_of), await connection.run_sync(rows_of)) == before
    await database.close()
