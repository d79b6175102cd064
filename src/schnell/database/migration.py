"""Bring a database to the newest schema, with the migrations that come inside the package."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import text

from schnell.database.connection import Connection
from schnell.database.session import Database

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_LOCK: Final = 5_412_839


async def migrate(database: Database) -> None:
    """Run every migration that `database` has not had yet. Two servers that start at once take turns."""
    async with database.write() as connection:
        await take_turn(connection)
        await connection.run_sync(_upgrade)


async def take_turn(connection: Connection) -> None:
    """Keep other servers that start out of this part of the start, until this transaction ends."""
    # SQLite lets one transaction write at a time by itself
    if connection.dialect.name == "postgresql":
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))


async def schema_is_current(connection: Connection) -> bool:
    """Whether the database has had every migration of this version."""
    return await connection.run_sync(_is_current)


def _upgrade(connection: SyncConnection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _is_current(connection: SyncConnection) -> bool:
    here = MigrationContext.configure(connection).get_current_revision()
    return here == ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config
