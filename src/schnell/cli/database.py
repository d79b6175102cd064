"""The server's database, opened by commands that work on it directly, with no server in between."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from schnell.database.connection import Connection
    from schnell.database.session import Database
    from schnell.settings import Settings

_Answer = TypeVar("_Answer")

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="The server's data folder [SCHNELL_DATA_DIR].")]


@asynccontextmanager
async def open_database(settings: "Settings", *, make: bool = False) -> "AsyncIterator[Database]":
    """The database that the settings name, migrated to the newest schema; closed at the end of the block.

    Raises:
        ConfigurationError: there is none, and it is not to be made.
    """
    from schnell.bootstrap import build_database, check_data
    from schnell.database.migration import migrate

    if not make:
        check_data(settings)
    database = build_database(settings)
    try:
        await migrate(database)
        yield database
    finally:
        await database.close()


def run_in_transaction(
    data_dir: Path | None, action: "Callable[[Connection], Awaitable[_Answer]]", *, make: bool = False
) -> _Answer:
    """Run `action` in one write transaction on the server's database and return its result. As `open_database`."""
    from schnell.bootstrap import read_settings

    async def run() -> _Answer:
        settings = read_settings(data_dir=data_dir)
        async with open_database(settings, make=make) as database, database.write() as connection:
            return await action(connection)

    return asyncio.run(run())
