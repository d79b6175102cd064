"""Records as servers leave them in between, and leases as time leaves them."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from schnell.accounts.credits import audit, reserve
from schnell.accounts.identity import Caller
from schnell.accounts.teams import create_team, find_member, find_team
from schnell.assets.links import LinkSigner
from schnell.assets.local import LocalAssets
from schnell.assets.store import KeyMint
from schnell.clock import now
from schnell.database.session import Database
from schnell.database.tables import images, ledger, new_id, records, servers
from schnell.file_locks import LockedFiles
from schnell.generations.records import Record, StoredImage, insert_record
from schnell.generations.servers import ServerLease

COST = 100
KEYS = KeyMint("test")


def store_in(folder: Path) -> LocalAssets:
    return LocalAssets(folder / "assets", LinkSigner("secret"), "http://pictures.example")


async def start_lease(database: Database, folder: Path, **more: Any) -> ServerLease:
    """The lease of a server whose data folder is `folder`."""
    lease = ServerLease(database, LockedFiles(folder / "servers"), **more)
    await lease.start()
    return lease


async def age_lease(database: Database, lease: ServerLease, *, held: float = 0, expired: float = 0) -> None:
    """As if the lease had been held for some seconds, or had run out some seconds ago."""
    async with database.write() as connection:
        mine = servers.c.id == lease.id
        row = (await connection.execute(select(servers).where(mine))).one()
        values = {"held_since": row.held_since - timedelta(seconds=held)}
        if expired:
            values["expires_at"] = row.expires_at - timedelta(seconds=lease.seconds + expired)
        await connection.execute(update(servers).where(mine).values(values))


async def make_caller(database: Database) -> Caller:
    async with database.write() as connection:
        team = await create_team(connection, f"team {new_id()}")
        member = await find_member(connection, team.id)
    return Caller(team.id, member.user_id, member.user_name, new_id(), "ADMIN", ("generate", "read"))


async def leave_unfinished(database: Database, caller: Caller, server_id: str, *, age: float = 0) -> Record:
    """A record of two pictures that a server is drawing."""
    moment = now() - timedelta(seconds=age)
    record = Record(
        id=new_id(),
        team_id=caller.team_id,
        user_id=caller.user_id,
        key_id=None,
        instance=server_id,
        dialect="onemin",
        type="IMAGE_GENERATOR",
        model="model",
        status="QUEUED",
        prompt_object={},
        settings={"num_outputs": 2, "loras": []},
        cost=COST,
        created_at=moment,
        images=tuple(StoredImage(KEYS.make(moment, "webp"), place, "image/webp") for place in range(2)),
    )
    async with database.write() as connection:
        await reserve(connection, caller, record.id, COST)
        await insert_record(connection, record)
    return record


def as_success(record: Record) -> Record:
    return replace(record, status="SUCCESS", finished_at=now())


async def status_of(database: Database, record: Record) -> tuple[str, str | None] | None:
    async with database.read() as connection:
        row = (await connection.execute(select(records).where(records.c.id == record.id))).first()
    return None if row is None else (row.status, row.error_code)


async def picture_states(database: Database, record: Record) -> list[str]:
    query = select(images.c.state).where(images.c.record_id == record.id)
    async with database.read() as connection:
        return list((await connection.execute(query)).scalars())


async def used_credits(database: Database, caller: Caller) -> int:
    """What the team has used, after the books were found right."""
    async with database.read() as connection:
        assert await audit(connection) == []
        return (await find_team(connection, caller.team_id)).used_credit


async def movements(database: Database, record: Record) -> list[str]:
    query = select(ledger.c.kind).where(ledger.c.record_id == record.id).order_by(ledger.c.id)
    async with database.read() as connection:
        return list((await connection.execute(query)).scalars())
