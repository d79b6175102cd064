"""Two servers end records in any order, also each other's, and die: every record ends once, nothing is left over."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from counts import repeats
from leftovers import (
    COST,
    age_lease,
    as_success,
    leave_unfinished,
    make_caller,
    movements,
    picture_states,
    start_lease,
    status_of,
    store_in,
    used_credits,
)
from schnell.accounts.credits import find_reservation, settle
from schnell.accounts.identity import Caller
from schnell.assets.local import LocalAssets
from schnell.database.session import Database
from schnell.database.tables import images, metadata
from schnell.errors import NotFoundError
from schnell.generations import Admission, History
from schnell.generations.records import Record, finish_record
from schnell.generations.recovery import reconcile, remove_images
from schnell.generations.servers import ServerLease

OPERATIONS = ("accept", "store", "finish", "cancel", "delete", "recover", "silence", "renew", "die")
operations = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 1), st.integers(0, 9)), max_size=25)


@dataclass
class World:
    """Servers, and the records that each of them is drawing."""

    database: Database
    store: LocalAssets
    folder: Path
    caller: Caller
    leases: list[ServerLease] = field(default_factory=list)
    drawn: list[list[Record]] = field(default_factory=lambda: [[], []])
    made: list[Record] = field(default_factory=list)

    async def accept(self, server: int, _: int) -> None:
        record = await leave_unfinished(self.database, self.caller, self.leases[server].id)
        self.drawn[server].append(record)
        self.made.append(record)

    async def keep_file(self, server: int, which: int) -> None:
        if self.drawn[server]:
            record = self.drawn[server][which % len(self.drawn[server])]
            # a file that is written after its record was ended, and its rows removed, because the server was taken for
            # dead, is removed at the end of the drawing: lost is only one whose server dies in between
            if await picture_states(self.database, record) == []:
                return
            await self.store.put(record.images[which % 2].key, b"picture", "image/webp")

    async def finish(self, server: int, which: int) -> None:
        """What the server that draws does at the end."""
        if not self.drawn[server]:
            return
        record = self.drawn[server].pop(which % len(self.drawn[server]))
        keys = [image.key for image in record.images]
        for key in keys:
            await self.store.put(key, b"picture", "image/webp")
        async with self.database.write() as connection:
            ended = await finish_record(connection, as_success(record))
            if ended:
                reservation = await find_reservation(connection, record.id)
                assert reservation is not None
                await settle(connection, reservation, COST, 2)
        if not ended:
            await remove_images(self.database, self.store, keys)

    async def end_elsewhere(self, which: int, *, delete: bool) -> None:
        if not self.made:
            return
        history = History(self.database, self.store, Admission())
        record = self.made[which % len(self.made)]
        try:
            await (history.delete if delete else history.cancel)(self.caller, record.id)
        except NotFoundError:
            assert await status_of(self.database, record) in {
                None,
                ("DELETED", None),
                ("DELETED", "CANCELLED"),
                ("DELETED", "SERVER_STOPPED"),
            }

    async def recover(self, server: int) -> None:
        under_way = {record.id for record in self.drawn[server]}
        await reconcile(self.database, self.store, self.leases[server], under_way.__contains__)

    async def die(self, server: int) -> None:
        """The process ends, and another starts in its place."""
        self.drawn[server].clear()
        await self.leases[server].end()
        self.leases[server] = await start_lease(self.database, self.folder)

    async def do(self, operation: str, server: int, which: int) -> None:
        match operation:
            case "accept":
                await self.accept(server, which)
            case "store":
                await self.keep_file(server, which)
            case "finish":
                await self.finish(server, which)
            case "cancel" | "delete":
                await self.end_elsewhere(which, delete=operation == "delete")
            case "recover":
                await self.recover(server)
            case "silence":
                await age_lease(self.database, self.leases[1 - server], held=3600)
                await age_lease(self.database, self.leases[server], expired=1)
            case "renew":
                await self.leases[server].renew()
            case _:
                await self.die(server)


@settings(max_examples=repeats(300), deadline=None)
@given(operations)
def test_whatever_happens_every_record_ends_once_and_files_credits_and_rows_agree(
    moves: list[tuple[str, int, int]],
) -> None:
    with TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder), moves))


async def play(folder: Path, moves: list[tuple[str, int, int]]) -> None:
    database = Database(f"sqlite:{folder / 'records.db'}")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
    world = World(database, store_in(folder), folder, await make_caller(database))
    world.leases += [await start_lease(database, folder) for _ in range(2)]
    for operation, server, which in moves:
        # a row that was taken away comes back with the next heartbeat
        await asyncio.gather(*(lease.renew() for lease in world.leases if operation == "silence"))
        await world.do(operation, server, which)
        await used_credits(database, world.caller)
    await world.die(1)
    while world.drawn[0]:
        await world.finish(0, 0)
    await world.leases[0].renew()
    await world.recover(0)
    await check_quiet(world)
    await database.close()


async def check_quiet(world: World) -> None:
    charged = 0
    for record in world.made:
        moved = await movements(world.database, record)
        assert moved in (["reserve", "settle"], ["reserve", "release"])
        charged += COST * moved.count("settle")
        status = await status_of(world.database, record)
        if status is not None:
            assert status[0] == ("SUCCESS" if "settle" in moved else "FAILURE")
            assert await picture_states(world.database, record) == (["STORED"] * 2 if "settle" in moved else [])
    assert await used_credits(world.database, world.caller) == charged
    async with world.database.read() as connection:
        keys = sorted((await connection.execute(select(images.c.key))).scalars())
    assert await world.store.list_keys() == keys
