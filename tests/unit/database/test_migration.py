from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from schnell.database.migration import migrate, schema_is_current
from schnell.database.session import Database
from schnell.database.tables import metadata


async def test_the_migrations_make_exactly_the_tables(database: Database) -> None:
    def compare(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with database.read() as connection:
        assert await connection.run_sync(compare) == []
        assert await schema_is_current(connection)


async def test_migrating_again_changes_nothing(database: Database) -> None:
    await migrate(database)
