"""Two gateways over one database and one cluster: clients must not notice where pictures are drawn, nor who dies."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from clusters import Replicas, TestCluster, await_that, kill, new_cluster, ray_environment, replicas
from counts import SOAK, repeats
from gateways import Gateways, draw, gateways
from schnell.serving.ray_cluster import ReplicaPlan
from servers import body_with

PLAN = ReplicaPlan(least=2, most=2, cpus=0.5, health_seconds=1.0)


@pytest.fixture(scope="module")
def two(cluster: TestCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with replicas(tmp_path_factory.mktemp("gateways"), PLAN, step_seconds=0.1, rows=4) as found:
        yield found


@pytest.mark.skipif(not SOAK, reason="half a minute: make soak")
async def test_two_gateways_answer_in_every_dialect_and_one_may_be_killed(
    two: Replicas, cluster: TestCluster, tmp_path: Path
) -> None:
    async with gateways(tmp_path, cluster.address) as found:
        first, second = await asyncio.gather(found.start(), found.start())
        async with first.client() as one, second.client() as other:
            await _dialects(one)
            await _streams(other)
            await _cancels(one, other, two)
        victim = first
        for turn in range(repeats(10)):
            async with victim.client() as one, second.client() as other:
                bodies = [body_with(prompt=f"{turn} {n}", seed=n) for n in range(20)]
                answers = [
                    asyncio.create_task(draw(one if n % 2 else other, body, f"key {turn} {n}"))
                    for n, body in enumerate(bodies)
                ]
                await asyncio.to_thread(await_that, partial(two.has_begun, f"{turn} 1"))
                kill(victim.process.pid)
                given = await asyncio.gather(*answers)
                assert all(answer is not None and answer.status_code == 200 for answer in given[::2])
                # the client asks again, with the same key, at the gateway that is left
                again = [await _until_answered(other, body, f"key {turn} {n}") for n, body in enumerate(bodies)]
                assert [each["aiRecord"]["status"] for each in again] == ["SUCCESS"] * 20
            await asyncio.to_thread(victim.process.wait, 20)
            if turn + 1 < repeats(10):
                victim = await found.start()
        assert await _settled(found)
        await found.check_books()
        assert second.stop() == 0


async def _until_answered(client: httpx.AsyncClient, body: dict[str, Any], key: str) -> dict[str, Any]:
    for _ in range(120):
        answer = await draw(client, body, key)
        if answer is not None and answer.status_code == 200 and answer.json()["aiRecord"]["status"] == "SUCCESS":
            found: dict[str, Any] = answer.json()
            return found
        await asyncio.sleep(0.25)
    raise AssertionError(answer and answer.text)


async def _settled(found: Gateways) -> bool:
    for _ in range(200):
        if not {"QUEUED", "PROCESSING"} & set(await found.count()):
            return True
        await asyncio.sleep(0.1)
    return False


async def _dialects(client: httpx.AsyncClient) -> None:
    native = await draw(client, body_with(prompt="native", seed=3))
    assert native is not None
    assert native.status_code == 200, native.text
    openai = await client.post("/v1/images/generations", json={"prompt": "openai", "model": "flux-schnell"})
    assert openai.status_code == 200, openai.text
    wrong = await draw(client, body_with(prompt="wrong", num_inference_steps=99))
    assert wrong is not None
    assert wrong.status_code == 400
    failed = await draw(client, body_with(prompt="step"))
    assert failed is not None
    assert (failed.status_code, failed.json()["errorCode"]) == (500, "GENERATION_FAILED")


async def _streams(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/features?isStreaming=true", json=body_with(prompt="streamed"))
    events = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    assert events[-1] == "done"
    assert events.count("step") == 4


async def _cancels(client: httpx.AsyncClient, other: httpx.AsyncClient, two: Replicas) -> None:
    """Through another gateway than the one that draws: it finds out with its next heartbeat."""
    body = body_with(prompt="cancelled", num_outputs=4) | {"async": True}
    accepted = (await other.post("/api/features", json=body)).json()
    await asyncio.to_thread(await_that, lambda: two.steps_of("cancelled") >= 1)
    answer = await client.post(f"/api/results/{accepted['aiRecord']['uuid']}/cancel")
    assert answer.status_code < 300, answer.text


@pytest.mark.skipif(not SOAK, reason="waits for Ray to give up: make soak")
def test_a_machine_without_a_node_of_the_cluster_is_told_how_to_start_one(cluster: TestCluster) -> None:
    # what another machine looks like to Ray: it looks for its node among the processes
    alone = ["unshare", "--pid", "--fork", "--mount-proc"]
    command = [*alone, sys.executable, "-m", "schnell", "cluster", "status", "--address", cluster.address]
    environment = os.environ | ray_environment() | {"RAY_GCS_SERVER_REQUEST_TIMEOUT_SECONDS": "20"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert f"ray start --address {cluster.address} --num-cpus 0" in done.stderr


@pytest.mark.skipif(not SOAK, reason="waits for half a minute: make soak")
async def test_without_a_head_gateways_close_their_records_and_end_and_serve_again_once_all_is_started_anew(
    environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a supervisor does, the test does: it starts what has ended."""
    engine = {"DEVICE": "cpu", "SAFETY": "", "REPLICA_CPUS": "0.5"}
    for name, value in engine.items():
        monkeypatch.setenv(f"SCHNELL_{name}", value)
    bodies = [body_with(prompt=f"headless {n}", seed=n) for n in range(8)]
    alone = new_cluster(tmp_path / "alone")
    try:
        head = alone.start_head(cpus=2)
        async with gateways(tmp_path, alone.address) as found:
            gateway = await found.start(expect_ready=False)
            await asyncio.to_thread(await_that, lambda: "cluster up" in str(gateway.problem()), 60, gateway.problem)
            with _cluster_up(tmp_path, alone.address) as up:
                await asyncio.to_thread(await_that, gateway.is_ready, 120, gateway.problem)
                async with gateway.client() as client:
                    jobs = [asyncio.create_task(draw(client, body, f"headless {n}")) for n, body in enumerate(bodies)]
                    await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
                    head.kill()
                    await asyncio.to_thread(await_that, lambda: "head" in str(gateway.problem()), 60, gateway.problem)
                    assert (await client.get("/healthz")).status_code == 200
                    await asyncio.gather(*jobs)
                assert await asyncio.to_thread(gateway.process.wait, 90) == 0
                assert await asyncio.to_thread(up.wait, 90) != 0
            await found.check_books()
            alone.start_head(cpus=2)
            with _cluster_up(tmp_path, alone.address):
                again = await found.start()
                async with again.client() as client:
                    given = [await _until_answered(client, body, f"headless {n}") for n, body in enumerate(bodies)]
                assert [each["aiRecord"]["status"] for each in given] == ["SUCCESS"] * 8
                await found.check_books()
    finally:
        alone.stop()


@contextmanager
def _cluster_up(folder: Path, address: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`schnell cluster up`, as an operator runs it: replicas with the real engine."""
    environment = os.environ | ray_environment() | {"SCHNELL_ASSETS_URL": f"file:{folder / 'pictures'}"}
    command = [sys.executable, "-m", "schnell", "cluster", "up", "--address", address, "--data-dir", str(folder / "up")]
    with (folder / "up.txt").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)
