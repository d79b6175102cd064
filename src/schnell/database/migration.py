"""Bring a database to the newest schema, with the migrations that come inside the package.

There are no migrations back: an older version runs on a backup that was made before the upgrade.
"""

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
#: PostgreSQL's advisory locks are told apart by a number; this one is ours, in every version.
_LOCK_NUMBER: Final = 5_412_839


async def migrate(database: Database) -> None:
    """Run every migration that `database` has not had yet, in one transaction: all of them, or none.

    Servers that start at once take turns.
    """
    async with database.migrate() as connection:
        await take_turn(connection)
        await connection.run_sync(_upgrade)


async def take_turn(connection: Connection) -> None:
    """Keep other servers that start out of this part of the start, until this transaction ends."""
    # on SQLite the transaction itself is the lock: there is one writer
    if connection.dialect.name == "postgresql":
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK_NUMBER})"))


async def schema_is_current(connection: Connection) -> bool:
    """Whether the database has had every migration of this version of schnell."""
    return await connection.run_sync(_is_current)


def knows_schema(revision: str) -> bool:
    """Whether a database whose last migration is `revision` can be brought to this version of schnell."""
    return revision in {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


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
