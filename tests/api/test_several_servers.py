"""Real servers of one installation on PostgreSQL: side by side, killed, paused; and two servers on one data folder."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from counts import SOAK
from databases import new_postgres_url
from schnell.accounts.credits import audit
from schnell.database.session import Database
from schnell.database.tables import images, ledger, records, servers, teams
from server_process import ServerProcess, start_server
from servers import body_with

#: Seconds of a lease, of which a heartbeat is a twelfth: soon over where a server is to lose it, else as by default.
SHORT, BRISK, LONG = 6, 24, 120
PICTURES = 2


@dataclass
class Installation:
    """Servers with data folders of their own, or one, over one database and one folder of pictures."""

    folder: Path
    url: str
    lease: int
    running: AsyncExitStack

    async def start(self, name: str, step_seconds: float = 0.0, **settings: str) -> ServerProcess:
        shared = {
            "database_url": self.url,
            "assets_url": f"file:{self.folder / 'pictures'}",
            "link_secrets": "x" * 32,
            "lease_seconds": str(self.lease),
        }
        server = await asyncio.to_thread(start_server, self.folder / name, step_seconds, **shared | settings)
        self.running.callback(server.end)
        return server

    async def start_two(self, one: float = 0.0, other: float = 0.0) -> tuple[ServerProcess, ServerProcess]:
        """Two servers whose steps take so long, with a data folder each."""
        found = await asyncio.gather(self.start("a", one), self.start("b", other))
        return found[0], found[1]

    async def check_books(self, *, done: bool = True) -> dict[str, int]:
        """How many records there are by status, after credits, rows and files were found to agree."""
        database = Database(self.url)
        async with database.read() as connection:
            assert await audit(connection) == []
            query = select(records.c.status, func.count()).group_by(records.c.status)
            statuses = dict(map(tuple, await connection.execute(query)))
            charged = (await connection.execute(select(func.sum(teams.c.used_credit)))).scalar_one()
            costs = select(func.coalesce(func.sum(records.c.cost), 0))
            assert charged == (await connection.execute(costs)).scalar_one()
            kinds = select(ledger.c.kind, func.count()).group_by(ledger.c.kind)
            moved = dict(map(tuple, await connection.execute(kinds)))
            rows = dict(map(tuple, await connection.execute(select(images.c.key, images.c.state))))
        await database.close()
        if done:
            assert moved.get("reserve", 0) == moved.get("settle", 0) + moved.get("release", 0)
            # thumbnails lie beside them, and are made when nothing else is to be done
            files = {path.name for path in (self.folder / "pictures").rglob("images/*") if path.is_file()}
            assert files == {key.rpartition("/")[2] for key in rows}
            assert set(rows.values()) <= {"STORED"}
        return statuses

    async def name_of(self, server: ServerProcess) -> str:
        """A server's id."""
        database = Database(self.url)
        async with database.read() as connection:
            found = await connection.execute(select(servers.c.id).where(servers.c.pid == server.pid))
            name: str = found.scalar_one()
        await database.close()
        return name

    async def living(self) -> int:
        database = Database(self.url)
        async with database.read() as connection:
            count: int = (await connection.execute(select(func.count()).select_from(servers))).scalar_one()
        await database.close()
        return count


@asynccontextmanager
async def installation(folder: Path, lease: int) -> AsyncIterator[Installation]:
    async with AsyncExitStack() as running:
        yield Installation(folder, new_postgres_url(), lease, running)


async def start_drawing(server: ServerProcess, count: int) -> list[str]:
    body = body_with(aspect_ratio="custom", width=256, height=256, num_outputs=PICTURES) | {"async": True}
    async with server.client() as client:
        answers = [await client.post("/api/features", json=body) for _ in range(count)]
    return [answer.json()["aiRecord"]["uuid"] for answer in answers]


async def show(server: ServerProcess, uuid: str) -> dict[str, Any]:
    async with server.client() as client:
        found: dict[str, Any] = (await client.get(f"/api/results/{uuid}")).json()["aiRecord"]
    return found


async def ends(server: ServerProcess, uuids: list[str]) -> list[str]:
    """The status of each record, or its error's code, once all have ended."""
    found = []
    async with asyncio.timeout(90):
        for uuid in uuids:
            while (record := await show(server, uuid))["status"] == "PROCESSING":  # noqa: ASYNC110 - another process ends it
                await asyncio.sleep(0.1)
            error = record["aiRecordDetail"]["responseObject"].get("error")
            found.append(error["errorCode"] if error else record["status"])
    return found


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(90):
        while not await condition():  # noqa: ASYNC110 - other processes bring it about
            await asyncio.sleep(0.1)


async def test_a_rolling_restart_fails_nothing_that_the_old_server_draws(tmp_path: Path) -> None:
    async with installation(tmp_path, LONG) as place:
        old = await place.start("data", 0.3)
        drawn = await start_drawing(old, 12)
        drafts = [tmp_path / "pictures" / ".drafts" / name / "half" for name in (await place.name_of(old), "long-dead")]
        for draft in drafts:
            draft.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(b"half a pict")
        new = await place.start("data")
        assert [draft.exists() for draft in drafts] == [True, False]
        more = await start_drawing(new, 2)
        stopping = asyncio.create_task(asyncio.to_thread(old.stop))
        assert await ends(new, drawn + more) == ["SUCCESS"] * 14
        assert await stopping == 0
        assert await place.living() == 1
        assert await place.check_books() == {"SUCCESS": 14}
        assert "recovered" not in old.errors.read_text() + new.errors.read_text()


async def test_what_a_killed_server_was_drawing_fails_on_its_restart_at_once_and_on_no_other(tmp_path: Path) -> None:
    async with installation(tmp_path, LONG) as place:
        killed, other = await place.start_two(60, 0.3)
        lost, drawn = await start_drawing(killed, 3), await start_drawing(other, 3)
        killed.kill()
        again = await place.start("a")
        assert await ends(again, lost) == ["SERVER_STOPPED"] * 3
        assert await ends(other, drawn) == ["SUCCESS"] * 3
        assert await place.check_books() == {"SUCCESS": 3, "FAILURE": 3}


async def test_a_server_that_stays_dead_is_put_right_by_another_when_its_lease_has_run_out(tmp_path: Path) -> None:
    async with installation(tmp_path, SHORT) as place:
        killed, other = await place.start_two(60, 0.5)
        lost, drawn = await start_drawing(killed, 3), await start_drawing(other, 3)
        killed.kill()
        assert await ends(other, lost) == ["SERVER_STOPPED"] * 3
        assert await ends(other, drawn) == ["SUCCESS"] * 3

        async def alone() -> bool:
            return await place.living() == 1

        await until(alone)
        assert await place.check_books() == {"SUCCESS": 3, "FAILURE": 3}


@pytest.mark.timeout(600)
async def test_a_server_that_is_paused_for_less_than_its_lease_loses_nothing(tmp_path: Path) -> None:
    async with installation(tmp_path, LONG) as place:
        paused, other = await place.start_two(0.3, 0.3)
        drawn = await start_drawing(paused, 4)
        paused.pause()
        drawn += await start_drawing(other, 4)
        await asyncio.sleep(60 if SOAK else 1)
        third = await place.start("c")
        paused.go_on()
        assert await ends(third, drawn) == ["SUCCESS"] * 8
        assert await place.check_books() == {"SUCCESS": 8}


@pytest.mark.skipif(not SOAK, reason="waits until a lease has run out: make soak")
async def test_a_server_that_was_paused_for_too_long_stops_what_others_have_ended_and_goes_on(tmp_path: Path) -> None:
    async with installation(tmp_path, SHORT) as place:
        paused, other = await place.start_two(2, 0.2)
        lost = await start_drawing(paused, 3)
        paused.pause()
        assert await ends(other, lost) == ["SERVER_STOPPED"] * 3
        await place.check_books(done=False)
        paused.go_on()

        async def both_live() -> bool:
            return await place.living() == 2

        await until(both_live)
        async with other.client() as client:
            assert (await client.get("/readyz")).status_code == 200
        later = await start_drawing(paused, 1)
        assert await ends(other, later) == ["SUCCESS"]
        # its own deletions are done by then: heartbeats are a fraction of a second apart
        await asyncio.sleep(SHORT)
        assert await place.check_books() == {"SUCCESS": 1, "FAILURE": 3}


async def test_a_picture_is_cancelled_or_deleted_through_another_server(tmp_path: Path) -> None:
    async with installation(tmp_path, BRISK) as place:
        drawing, other = await place.start_two(2.0)
        cancelled, deleted, left = await start_drawing(drawing, 3)
        async with other.client() as client:
            answer = await client.post(f"/api/results/{cancelled}/cancel")
            assert answer.json()["aiRecord"]["aiRecordDetail"]["responseObject"]["error"]["errorCode"] == "CANCELLED"
            assert (await client.delete(f"/api/results/{deleted}")).status_code == 204
            assert (await client.get(f"/api/results/{deleted}")).status_code == 404
        async with drawing.client() as client:
            assert (await client.get(f"/api/results/{deleted}")).status_code == 404

        async def only_one_is_drawn() -> bool:
            async with drawing.client() as client:
                text = (await client.get("/metrics")).text
            return 'schnell_generations_total{dialect="onemin",outcome="CANCELLED"} 2.0' in text

        await until(only_one_is_drawn)
        assert (await show(other, left))["status"] == "PROCESSING"
        assert await ends(other, [left]) == ["SUCCESS"]
        assert await place.check_books() == {"SUCCESS": 1, "FAILURE": 1}


async def run_schnell(folder: Path, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = {"SCHNELL_DATA_DIR": str(folder), "PYTHONPATH": ":".join(sys.path)}
    environment |= {f"SCHNELL_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "schnell", *arguments]
    return await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


async def test_a_second_server_on_a_data_folder_is_refused_naming_both_but_commands_are_not(
    tmp_path: Path,
) -> None:
    first = await asyncio.to_thread(start_server, tmp_path / "data", 0.3)
    try:
        drawn = await start_drawing(first, 3)
        done = await run_schnell(tmp_path / "data", "serve", "--port", "0")
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"schnell: {tmp_path / 'data'} is in use: process {first.pid} on ")
        done = await run_schnell(tmp_path / "data", "teams", "create", "acme")
        assert done.returncode == 0, done.stderr
        assert await ends(first, drawn) == ["SUCCESS"] * 3
    finally:
        first.end()


async def test_a_database_file_outside_the_data_folder_has_one_server_too_and_a_killed_one_locks_nobody_out(
    tmp_path: Path,
) -> None:
    shared = {"database_url": f"sqlite:{tmp_path / 'somewhere.db'}"}
    first = await asyncio.to_thread(start_server, tmp_path / "a", 0.0, **shared)
    try:
        done = await run_schnell(tmp_path / "b", "serve", "--port", "0", **shared)
        assert done.returncode == 1
        assert f"{tmp_path} is in use: process {first.pid} on " in done.stderr
    finally:
        first.end()
    again = await asyncio.to_thread(start_server, tmp_path / "b", 0.0, **shared)
    again.end()
