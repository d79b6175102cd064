"""Whether credits, records and files agree, whatever happened to a server."""

import io
from collections.abc import Collection
from pathlib import Path

from PIL import Image
from sqlalchemy import func, select

from schnell.accounts.credits import audit
from schnell.assets.store import list_pictures
from schnell.database.connection import Connection
from schnell.database.session import Database
from schnell.database.tables import images, ledger, records, teams


async def check_books(folder: Path, database_url: str) -> int:
    """No credit off, no record in between, every row with its readable file, every file with its row: how many.

    A thumbnail is made soon after its picture, or when it is looked at: it may be missing, and has no row of its own.
    """
    root = folder / "assets"
    files = {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}
    database = Database(database_url)
    async with database.read() as connection:
        await check_credits(connection)
        await check_rows(connection, files)
    await database.close()
    for data in files.values():
        Image.open(io.BytesIO(data)).load()
    return len(list_pictures(files))


async def check_credits(connection: Connection) -> None:
    """Nothing is held, and what is used is what finished records cost."""
    assert await audit(connection) == []
    assert await unfinished(connection) == 0
    charged = (await connection.execute(select(func.coalesce(func.sum(teams.c.used_credit), 0)))).scalar_one()
    booked = (await connection.execute(select(func.coalesce(func.sum(ledger.c.amount), 0)))).scalar_one()
    assert charged == booked
    open_reservations = select(func.count()).where(ledger.c.kind == "reserve").scalar_subquery()
    closed = select(func.count()).where(ledger.c.kind != "reserve").scalar_subquery()
    assert (await connection.execute(select(open_reservations - closed))).scalar_one() == 0
    cost = select(func.coalesce(func.sum(records.c.cost), 0)).where(records.c.status == "FAILURE")
    assert (await connection.execute(cost)).scalar_one() == 0


async def check_rows(connection: Connection, files: Collection[str]) -> None:
    """The pictures that records name are those that are stored, and no others have a thumbnail."""
    found = (await connection.execute(select(images.c.key, images.c.state))).all()
    rows = {row.key: row.state for row in found}
    assert set(rows) <= set(files)
    assert set(rows) == set(list_pictures(files))
    assert set(rows.values()) <= {"STORED"}


async def unfinished(connection: Connection) -> int:
    query = select(func.count()).select_from(records).where(records.c.status.in_(("QUEUED", "PROCESSING")))
    return int((await connection.execute(query)).scalar_one())


async def charged_for_successes(connection: Connection) -> tuple[int, int]:
    """Credits that are used, and the sum of what the visible successes cost: equal unless a record was deleted."""
    used = (await connection.execute(select(func.sum(teams.c.used_credit)))).scalar_one()
    cost = select(func.coalesce(func.sum(records.c.cost), 0)).where(records.c.status == "SUCCESS")
    return int(used), int((await connection.execute(cost)).scalar_one())
