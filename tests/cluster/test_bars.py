"""The figures of docs/scale-out.md, on replicas whose steps take a fixed time. They take minutes: `make soak` alone."""

import asyncio
import random
import sys
import time
from itertools import accumulate
from pathlib import Path
from statistics import median, quantiles

import pytest

from clusters import Replicas, TestCluster, await_that, replicas
from counts import SOAK
from schnell.serving.ray_cluster import ReplicaPlan
from schnell.spec import AdapterUse, GenerationSpec, Job

pytestmark = [pytest.mark.soak, pytest.mark.skipif(not SOAK, reason="figures, by `make soak`")]


def say(*found: object) -> None:
    """The figures, which `pytest -s` shows."""
    sys.stdout.write(" ".join(map(str, found)) + "\n")


def plan(count: int, most: int = 0, **options: float) -> ReplicaPlan:
    return ReplicaPlan(least=count, most=max(count, most), cpus=0.5, health_seconds=1.0, **options)


async def seconds_for(found: Replicas, jobs: int) -> float:
    await asyncio.gather(*[found.draw(f"warm {n}") for n in range(8)])
    start = time.perf_counter()
    await asyncio.gather(*[found.draw(f"job {n}") for n in range(jobs)])
    return time.perf_counter() - start


async def test_replicas_add_up(cluster: TestCluster, tmp_path: Path) -> None:
    taken = {}
    for count in (1, 2, 4):
        with replicas(tmp_path / str(count), plan(count), step_seconds=0.05) as found:
            taken[count] = await seconds_for(found, 80)
    say({count: round(taken[1] / seconds, 2) for count, seconds in taken.items()})
    assert taken[1] / taken[2] >= 1.9
    assert taken[1] / taken[4] >= 3.7


async def test_the_way_through_the_cluster_takes_milliseconds(cluster: TestCluster, tmp_path: Path) -> None:
    with replicas(tmp_path, plan(1), step_seconds=0.02) as found:
        taken = []
        for n in range(120):
            job = Job(f"one {n}", "team", GenerationSpec("x", steps=1), 0)
            start = time.perf_counter()
            outcome = await found.runner.run(job, lambda _: None)
            # the engine's own time is part of the outcome; the finishing thread's is not, so this is an upper bound
            taken.append(1000 * (time.perf_counter() - start - outcome.timings["denoise"]))
    say("added ms: p50", round(median(taken[20:]), 1), "p95", round(quantiles(taken[20:], n=20)[-1], 1))
    assert median(taken[20:]) <= 15


async def _zipf(found: Replicas, loras: list[AdapterUse], requests: int) -> tuple[float, float]:
    """Loads a LoRA, and the 95th percentile of answers, under requests that come at two thirds of what can be drawn."""
    chance = random.Random(1)
    weights = list(accumulate(1 / rank for rank in range(1, len(loras) + 1)))
    taken: list[float] = []

    async def one(n: int) -> None:
        lora = chance.choices(loras, cum_weights=weights)[0]
        start = time.perf_counter()
        await found.draw(f"zipf {n}", loras=(lora,), steps=1)
        taken.append(time.perf_counter() - start)

    tasks = []
    for n in range(requests):
        tasks.append(asyncio.create_task(one(n)))
        await asyncio.sleep(chance.expovariate(1 / 0.05))
    await asyncio.gather(*tasks)
    loads = sum(line[1] == "load" for line in found.diary())
    return loads / len(loras), quantiles(taken, n=20)[-1]


async def test_loras_stay_where_they_are(cluster: TestCluster, tmp_path: Path) -> None:
    with replicas(tmp_path / "few", plan(3), step_seconds=0.1, load_seconds=0.05, slots=8) as found:
        loads, late = await _zipf(found, [found.lora(f"lora{n}") for n in range(12)], 600)
    with replicas(tmp_path / "all", plan(3), step_seconds=0.1, load_seconds=0.0, slots=12) as found:
        _, least = await _zipf(found, [found.lora(f"lora{n}") for n in range(12)], 600)
    say("loads a LoRA", round(loads, 2), "p95", round(late, 3), "all resident", round(least, 3), round(late / least, 2))
    assert loads <= 1.5
    assert late <= 1.3 * least


async def test_replicas_come_and_go_with_the_work_and_lose_none(cluster: TestCluster, tmp_path: Path) -> None:
    scaling = plan(1, 3, queue_seconds=2.0, up_seconds=1.0, down_seconds=4.0)
    with replicas(tmp_path, scaling, step_seconds=0.1) as found:
        await found.draw("first")
        jobs = [asyncio.create_task(found.draw(f"load {n}")) for n in range(100)]
        await asyncio.to_thread(await_that, lambda: len(found.connection.view.reports()) == 3, 90)
        assert len(await asyncio.gather(*jobs)) == 100
        trickle: list[bytes] = []
        while len(found.connection.view.reports()) > 1:
            trickle.append(await found.draw(f"trickle {len(trickle)}", steps=1))
            await asyncio.sleep(0.3)
            assert len(trickle) < 300
    drawn = {line[2] for line in found.diary() if line[1] == "step"}
    say("1 -> 3 -> 1; drawn meanwhile:", len(trickle))
    assert {f"load {n}" for n in range(100)} <= drawn
    assert {each.attempt for each in found.heard} == {1}


async def test_a_node_that_is_gone_loses_nothing(cluster: TestCluster, tmp_path: Path) -> None:
    node = cluster.add_node(cpus=2)
    # more than the first node has room for
    with replicas(tmp_path, ReplicaPlan(least=4, most=4, cpus=2.0, health_seconds=1.0), step_seconds=0.1) as found:
        jobs = [asyncio.create_task(found.draw(f"node {n}")) for n in range(100)]
        await asyncio.to_thread(await_that, lambda: found.steps_of("node 0") >= 1)
        await asyncio.to_thread(node.kill)
        assert len(await asyncio.gather(*jobs)) == 100
        say(
            "a node killed: 100 of 100, begun again:",
            sum(each.attempt > 1 and each.stage == "denoise" and each.step == 1 for each in found.heard),
        )
