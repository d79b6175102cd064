import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from schnell.database.connection import Connection

_Answer = TypeVar("_Answer")

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="The server's data folder [SCHNELL_DATA_DIR].")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def on_database(data_dir: Path | None, action: "Callable[[Connection], Awaitable[_Answer]]") -> _Answer:
    """Run `action` in one transaction on the server's database, brought to the newest schema first."""
    from schnell.bootstrap import build_database, read_settings
    from schnell.database.migration import migrate

    async def run() -> _Answer:
        database = build_database(read_settings(data_dir=data_dir))
        try:
            await migrate(database)
            async with database.write() as connection:
                return await action(connection)
        finally:
            await database.close()

    return asyncio.run(run())
