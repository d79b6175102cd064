"""A database copied while servers write to it, and put back: SQLite by its online backup, PostgreSQL by `pg_dump`.

Each copy is one moment of the database. What it names (pictures, LoRAs) is read in the same moment.
"""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Executable, inspect, select, text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine

from schnell.database.session import Database, parse_database_url
from schnell.database.tables import images, loras, teams
from schnell.errors import BackupError

_KEYS: Final = select(images.c.key, images.c.bytes).where(images.c.state == "STORED")
_HASHES: Final = select(loras.c.sha256).distinct()
_PREVIEWS: Final = select(loras.c.id)
_SCHEMA: Final = text("SELECT version_num FROM alembic_version")


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a copy of a database names: stored pictures with their sizes in bytes, the files of LoRAs, LoRAs' ids.

    `schema` is the last migration that it has had.
    """

    pictures: dict[str, int]
    lora_files: frozenset[str]
    loras: frozenset[str]
    schema: str


async def copy_database(url: str, target: Path) -> Inventory:
    """Copy the database to the file `target`, while others use it.

    Raises:
        BackupError: there is no such database, or `pg_dump` is not here or fails.
    """
    parsed = parse_database_url(url)
    if parsed.get_backend_name() == "postgresql":
        return await _dump(parsed, target)
    source = Path(parsed.database or ":memory:")
    await asyncio.to_thread(_copy_sqlite, source, target)
    return await read_inventory(f"sqlite:{target}")


async def restore_database(url: str, source: Path) -> None:
    """Put a copy into the place that `url` names, which has to be empty.

    Raises:
        BackupError: it is not, or the copy cannot be put there.
    """
    parsed = parse_database_url(url)
    if parsed.get_backend_name() == "postgresql":
        await _check_empty(url)
        # in one transaction: a database that was half restored would not be empty when it is tried again
        options = ("--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction")
        await _run_tool("pg_restore", parsed, (*options, str(source)))
        return
    target = Path(parsed.database or ":memory:")
    check_absent(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.restored")
    draft.touch(mode=0o600)
    await asyncio.to_thread(_copy_sqlite, source, draft)
    draft.replace(target)


def check_absent(path: Path) -> None:
    """Refuse to write over a file. Raises BackupError."""
    if path.exists():
        raise BackupError(
            f"{path} is there already, and a restore replaces nothing: move it away, or choose another "
            "SCHNELL_DATA_DIR (and SCHNELL_DATABASE_URL)"
        )


async def read_inventory(url: str) -> Inventory:
    """What a SQLite database names."""
    database = Database(url)
    try:
        async with database.read() as connection:
            return await _list(connection.execute)
    finally:
        await database.close()


def _copy_sqlite(source: Path, target: Path) -> None:
    if not source.is_file():
        raise BackupError(f"there is no database at {source}")
    # all pages in one step: in several, SQLite starts anew whenever another process has written in between, which under
    # load is always. Readers and the writer go on meanwhile, in the write-ahead log
    try:
        with (
            closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=30)) as reading,
            closing(sqlite3.connect(target)) as writing,
        ):
            reading.backup(writing, pages=-1)
            found = writing.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.Error as cause:
        raise BackupError(f"the database {source} cannot be copied: {cause}") from cause
    if found != "ok":
        raise BackupError(f"the database {source} is damaged: {found}")


async def _dump(url: URL, target: Path) -> Inventory:
    """`pg_dump` in a snapshot that this process reads its lists in, too."""
    engine = create_async_engine(url, isolation_level="REPEATABLE READ", hide_parameters=True)
    try:
        async with engine.connect() as connection:
            found = await _list(connection.execute)
            snapshot = (await connection.execute(text("SELECT pg_export_snapshot()"))).scalar_one()
            await _run_tool("pg_dump", url, ("--format=custom", f"--snapshot={snapshot}", f"--file={target}"))
            return found
    finally:
        await engine.dispose()


async def _list(execute: Any) -> Inventory:
    async def rows(query: Executable) -> Sequence[Any]:
        return list(await execute(query))

    return Inventory(
        pictures={row.key: row.bytes for row in await rows(_KEYS)},
        lora_files=frozenset(row.sha256 for row in await rows(_HASHES)),
        loras=frozenset(row.id for row in await rows(_PREVIEWS)),
        schema=str((await rows(_SCHEMA))[0][0]),
    )


async def _check_empty(url: str) -> None:
    database = Database(url)
    try:
        async with database.read() as connection:
            if await connection.run_sync(lambda sync: inspect(sync).has_table(teams.name)):
                raise BackupError(
                    f"{database.location} holds a schnell already, and a restore replaces nothing: "
                    "make an empty database and name it in SCHNELL_DATABASE_URL"
                )
    finally:
        await database.close()


async def _run_tool(name: str, url: URL, arguments: Sequence[str]) -> None:
    """Run one of PostgreSQL's own tools on a database. The password goes through the environment, not the arguments."""
    program = shutil.which(name)
    if program is None:
        raise BackupError(
            f"{name} is not on the PATH: install PostgreSQL's client (apt-get install postgresql-client) in a version "
            "that is not older than the server"
        )
    named = url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    secret = {"PGPASSWORD": str(url.password)} if url.password else {}
    process = await asyncio.create_subprocess_exec(
        program, *arguments, "--dbname", named, env={**os.environ, **secret}, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    if process.returncode:
        raise BackupError(f"{name} failed: {errors.decode(errors='replace').strip()[-2000:]}")
