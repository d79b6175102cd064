import asyncio
from pathlib import Path

import pytest

from fakes import FakeRunner
from schnell.clock import Backoff
from schnell.database.inline_sqlite import InlineSqlite
from schnell.errors import AssetError, DatabaseUnavailableError
from schnell.web.lifecycle import BackgroundJob, repeat
from schnell.web.services import Services
from servers import BODY, Server, run_server


class Flaky:
    """Fails in its first runs, in a way of its own each time."""

    def __init__(self, failures: list[Exception], runs: int) -> None:
        self.failures = failures
        self.runs = 0
        self.done = asyncio.Event()
        self._enough = runs

    async def run(self, _: Services) -> None:
        self.runs += 1
        if self.runs >= self._enough:
            self.done.set()
        if self.failures:
            raise self.failures.pop(0)


async def test_a_background_job_goes_on_after_any_exception_and_ends_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[Exception] = [ValueError("a bug"), DatabaseUnavailableError("away"), AssetError("away"), OSError()]
    async with run_server(tmp_path) as server:
        first, second = Flaky(failures, runs=7), Flaky([], runs=7)
        jobs = [BackgroundJob("first", 0.0, first.run), BackgroundJob("second", 0.0, second.run)]
        tasks = [asyncio.create_task(repeat(job, server.services, Backoff(0, 0))) for job in jobs]
        await asyncio.gather(first.done.wait(), second.done.wait())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        text = (await server.client.get("/metrics")).text
    assert 'schnell_background_failures_total{job="first"} 4.0' in text
    assert 'job="second"' not in text
    assert "a bug" in caplog.text


async def test_a_server_serves_and_stops_while_all_its_background_jobs_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("schnell.web.lifecycle.apply_retention", fail)
    monkeypatch.setattr("schnell.generations.loras.LoraPreviews.draw_missing", fail)
    async with run_server(tmp_path) as server:
        assert (await server.draw()).status_code == 200
        text = (await server.client.get("/metrics")).text
        runner = server.runner
    assert 'schnell_background_failures_total{job="retention"} 1.0' in text
    assert 'schnell_background_failures_total{job="previews"} 1.0' in text
    assert runner.closed


@pytest.mark.parametrize("part", ["generations.drain", "webhooks.close", "runner.close", "store.close"])
async def test_what_fails_while_stopping_keeps_nothing_else_from_being_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    closed: list[str] = []
    close = InlineSqlite.close

    async def note(self: InlineSqlite) -> None:
        await close(self)
        closed.append("database")

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(InlineSqlite, "close", note)
    async with run_server(tmp_path) as server:
        owner, _, name = part.partition(".")
        target = server.runner if owner == "runner" else getattr(server.services, owner)
        monkeypatch.setattr(target, name, fail)
    assert closed == ["database"]


async def test_stopping_waits_for_ends_that_the_database_takes_late(tmp_path: Path) -> None:
    async with run_server(tmp_path, FakeRunner(gate=asyncio.Event()), drain_seconds=30) as server:
        await server.client.post("/api/features", json=BODY | {"async": True})
        [running] = server.services.admission.all()
        failures = [DatabaseUnavailableError("away")] * 3
        write = server.services.database.write

        def flaky() -> object:
            if failures:
                raise failures.pop()
            return write()

        server.services.database.write = flaky  # type: ignore[method-assign, assignment]
        assert server.runner.gate is not None
        server.runner.gate.set()
    assert not failures
    assert running.record.status == "SUCCESS"


async def test_a_store_that_is_away_does_not_keep_a_server_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise AssetError("the bucket is away")

    async def hidden(server: Server) -> str:
        uuid = (await server.draw()).json()["aiRecord"]["uuid"]
        with monkeypatch.context() as patch:
            patch.setattr(server.services.store, "delete", refuse)
            assert (await server.client.delete(f"/api/results/{uuid}")).status_code == 503
        return str(uuid)

    async with run_server(tmp_path) as server:
        await hidden(server)
    with monkeypatch.context() as patch:
        patch.setattr("schnell.assets.local.LocalAssets.delete", refuse)
        async with run_server(tmp_path) as server:
            assert (await server.client.get("/readyz")).status_code == 200
            assert len(await server.services.store.list_keys()) == 1
    async with run_server(tmp_path) as server:
        assert await server.services.store.list_keys() == []
