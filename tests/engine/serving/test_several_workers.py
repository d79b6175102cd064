"""Workers of several devices over one queue, with the embedded model and with engines without arithmetic."""

import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import make_job
from engines import SLOTS, EngineWithoutArithmetic, NothingLearned
from schnell.bootstrap.model import build_runner
from schnell.engine.denoise import Drawing
from schnell.engine.device import BFLOAT16, Precision
from schnell.engine.engine import Engine
from schnell.errors import ConfigurationError, GenerationFailedError, ModelBusyError
from schnell.models.folder import ModelFolder
from schnell.serving.batch_size import BatchSizer
from schnell.serving.device_share import DeviceLimits
from schnell.serving.queue import JobQueue
from schnell.serving.runner import InProcessRunner
from schnell.serving.worker import LaneKey, Worker
from schnell.spec import AdapterUse, Job, JobOutcome, Progress, Size


def ignore(_: Progress) -> None:
    return


@dataclass
class MortalEngine(EngineWithoutArithmetic):
    """Draws until a prompt says "poison", or until `steps_left` is used up: after that every call raises."""

    steps_left: int = 1_000_000
    is_dead: bool = False
    rows_at_death: int = 0
    drawn: list[str] = field(default_factory=list)

    def is_alive(self) -> bool:
        return not self.is_dead

    def step(self, drawings: Sequence[Drawing], precision: Precision) -> list[Drawing]:
        prompts = [cast("Any", drawing.prompt).request.prompt for drawing in drawings]
        self.steps_left -= 1
        if not self.is_dead and ("poison" in prompts or self.steps_left < 0):
            self.is_dead, self.rows_at_death = True, len(drawings)
        if self.is_dead:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self.drawn += prompts
        return super().step(drawings, precision)


def workers_over(*engines: EngineWithoutArithmetic, first: int = 1) -> list[Worker]:
    sizers: list[BatchSizer[LaneKey]] = [BatchSizer(first=first) for _ in engines]
    limits = [DeviceLimits(sizer.limit, SLOTS) for sizer in sizers]
    queue = JobQueue(limits[0].batch_limit, SLOTS, others=limits[1:])
    workers = [Worker(cast("Engine", engine), queue, sizers[i], i) for i, engine in enumerate(engines)]
    for worker in workers:
        worker._previews = NothingLearned()  # type: ignore[assignment]
    return workers


def job(name: str, *loras: str, **spec: Any) -> Job:
    adapters = tuple(AdapterUse(each, each, Path(each), 1.0) for each in loras)
    return replace(make_job(name, **({"size": Size(256, 256)} | spec)), id=name, team_id=name, adapters=adapters)


async def test_every_device_draws_the_same_bytes_and_a_warm_up_reaches_each(mini: ModelFolder) -> None:
    first, second = Engine(mini, torch.device("cpu")), Engine(mini, torch.device("cpu"))
    runner = build_runner(first, second)
    try:
        runner.warm_up()
        assert [device.steps for device in runner.snapshot().devices] == [4, 4]
        queued = [
            worker.submit(replace(make_job("red apple", size=Size(256, 256)), id=f"{i}"), ignore, here=True)
            for i, worker in enumerate(runner._workers)
        ]
        files = [future.result(60).images[0].data for future in queued]
        assert files[0] == files[1]
    finally:
        await runner.close()


def test_devices_that_would_draw_different_pixels_are_refused(mini: ModelFolder) -> None:
    class Other(Engine):
        def precision_for(self, *, go_fast: bool) -> Precision:  # noqa: ARG002 - the engine's form
            return BFLOAT16

    with pytest.raises(ConfigurationError, match="different precisions"):
        build_runner(Engine(mini, torch.device("cpu")), Other(mini, torch.device("cpu")))


async def test_the_snapshot_tells_of_each_device_and_of_all_together() -> None:
    workers = workers_over(MortalEngine(), MortalEngine())
    runner = InProcessRunner(*workers)
    futures = [worker.submit(job(f"{i}", "lora"), ignore, here=True) for i, worker in enumerate(workers)]
    for worker in workers:
        worker.start()
    for future in futures:
        future.result(10)
    found = runner.snapshot()
    assert [(device.name, device.is_lost, device.steps) for device in found.devices] == [("cpu", False, 4)] * 2
    assert (found.queued, found.steps, found.step_rows) == (0, 8, 8)
    assert found.step_seconds == pytest.approx(0.008)
    await runner.close()


async def test_a_device_that_dies_leaves_its_jobs_to_the_other_but_not_the_one_that_killed_it() -> None:
    dying, other = MortalEngine(), MortalEngine()
    workers = workers_over(dying, other, first=4)
    runner = InProcessRunner(*workers)
    poison = workers[0].submit(job("poison"), ignore, here=True)
    futures = [workers[0].submit(job(f"{i}", "lora", num_outputs=2), ignore) for i in range(6)]
    for worker in workers:
        worker.start()
    with pytest.raises(ModelBusyError, match="device that drew"):
        poison.result(10)
    assert [len(future.result(10).images) for future in futures if future.exception(10) is None]
    # those that shared the failed call with the poison are told to try again, and then are drawn
    for i, future in enumerate(futures):
        if future.exception(10) is not None:
            assert workers[1].submit(job(f"again {i}", "lora"), ignore).result(10).images
    snapshot = runner.snapshot()
    assert [device.is_lost for device in snapshot.devices] == [True, False]
    assert workers[0]._started == {}
    assert runner.estimate(job("x").spec, "team").expected_seconds > 0
    await runner.close()


async def test_without_any_device_left_every_job_ends_and_new_ones_are_refused() -> None:
    workers = workers_over(MortalEngine(steps_left=3), MortalEngine(steps_left=3))
    runner = InProcessRunner(*workers)
    futures = [workers[0].submit(job(f"{i}"), ignore) for i in range(6)]
    for worker in workers:
        worker.start()
    assert all(isinstance(future.exception(10), ModelBusyError) for future in futures)
    with pytest.raises(ModelBusyError) as refused:
        await runner.run(job("late"), ignore)
    assert refused.value.retry_after > 1
    assert all(device.is_lost for device in runner.snapshot().devices)
    await runner.close()


def test_memory_that_runs_out_on_one_device_is_no_matter_of_the_other() -> None:
    class Full(MortalEngine):
        def step(self, *_: object) -> list[Drawing]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    workers = workers_over(Full(), MortalEngine())
    for worker in workers:
        worker.start()
    bad = workers[0].submit(job("bad"), ignore, here=True)
    good = [workers[1].submit(job(f"{i}"), ignore, here=True) for i in range(3)]
    assert all(future.result(10).images for future in good)
    assert bad.exception(10) is not None
    assert not workers[0].status.is_lost
    for worker in workers:
        worker.stop()


@dataclass(frozen=True)
class Arrival:
    outputs: int
    steps: int
    loras: frozenset[int]
    is_cancelled: bool


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        outputs=st.integers(1, 4),
        steps=st.integers(1, 4),
        loras=st.frozensets(st.integers(0, 12), max_size=SLOTS),
        is_cancelled=st.sampled_from([False] * 9 + [True]),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=30, deadline=None)
@given(arrivals=ARRIVALS, devices=st.integers(2, 3), dies_after=st.integers(0, 30), seed=st.integers(0, 1000))
def test_every_job_ends_once_whatever_device_dies(
    arrivals: list[Arrival], devices: int, dies_after: int, seed: int
) -> None:
    engines = [MortalEngine(steps_left=dies_after), *(MortalEngine() for _ in range(devices - 1))]
    workers, chance = workers_over(*engines, first=4), random.Random(seed)
    ended: Counter[int] = Counter()
    futures: list[Future[JobOutcome]] = []
    started = chance.randrange(len(arrivals))
    for number, arrival in enumerate(arrivals):
        if number == started:
            for worker in workers:
                worker.start()
        loras = [f"lora {each}" for each in sorted(arrival.loras)]
        asked = job(f"{number}", *loras, num_outputs=arrival.outputs, steps=arrival.steps)
        future = workers[0].submit(asked, ignore)
        future.add_done_callback(lambda _, number=number: ended.update([number]))  # type: ignore[misc]
        futures.append(future)
        if arrival.is_cancelled:
            chance.choice(futures).cancel()
    failures = 0
    for arrival, future in zip(arrivals, futures, strict=True):
        try:
            assert len(future.result(20).images) == arrival.outputs
        except CancelledError:
            continue
        except (ModelBusyError, GenerationFailedError):
            failures += 1
    for worker in workers:
        worker.stop()
    # only what was in the one call that failed
    assert failures <= engines[0].rows_at_death
    assert ended == Counter(range(len(arrivals)))
    assert workers[0].queue.jobs == ()
    assert not any(workers[0].queue.held_adapters(device) for device in range(devices))
