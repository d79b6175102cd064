"""What a worker does before requests come to their turn, in which order, and what goes wrong with it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from conftest import make_job
from engines import SLOTS, EngineWithoutArithmetic, NothingLearned
from schnell.bootstrap.model import build_runner
from schnell.engine.denoise import Drawing
from schnell.engine.device import Precision
from schnell.engine.slot_routing import SlotUse
from schnell.errors import AdapterError
from schnell.serving.batch_size import BatchSizer
from schnell.serving.queue import JobQueue
from schnell.serving.worker import LaneKey, Worker
from schnell.spec import AdapterUse, Job


@dataclass
class BusyEngine(EngineWithoutArithmetic):
    """Copies beside its steps, and compiles; `events` is what was asked of it, in order."""

    events: list[str] = field(default_factory=list)
    in_memory: set[str] = field(default_factory=set)
    compiles: Callable[[], Iterator[float]] | None = None

    @property
    def is_compiled(self) -> bool:  # type: ignore[override]  # the stand-in's is a constant
        return self.compiles is not None

    def prepare(self) -> Iterator[float]:
        for share in self.compiles() if self.compiles else ():
            self.events.append(f"compile {share}")
            yield share

    def read_ahead(self, adapter: AdapterUse, precision: Precision) -> bool:  # noqa: ARG002 - the engine's form
        if adapter.sha256 in self.in_memory:
            return True
        self.events.append(f"read {adapter.name}")
        self.in_memory.add(adapter.sha256)
        return False

    def place_adapters(
        self, adapters: Sequence[AdapterUse], slots: Sequence[int], precision: Precision
    ) -> tuple[SlotUse, ...]:
        new = [each.name for each, slot in zip(adapters, slots, strict=True) if self.in_slot.get(slot) != each.sha256]
        self.events += [f"place {name}" for name in new]
        return super().place_adapters(adapters, slots, precision)

    def step(self, drawings: Sequence[Drawing], precision: Precision) -> list[Drawing]:
        self.events.append("step")
        return super().step(drawings, precision)


def worker_over(engine: BusyEngine) -> Worker:
    sizer: BatchSizer[LaneKey] = BatchSizer(largest=1)
    worker = Worker(engine, JobQueue(sizer.limit, SLOTS), sizer)  # type: ignore[arg-type]  # a stand-in
    worker._previews = NothingLearned()  # type: ignore[assignment]
    return worker


def job(*loras: str, prompt: str = "a") -> Job:
    uses = tuple(AdapterUse(name, name, Path(name), 1.0) for name in loras)
    return replace(make_job(prompt, steps=4), adapters=uses)


def test_a_lora_in_line_is_read_and_placed_while_others_step() -> None:
    engine = BusyEngine()
    worker = worker_over(engine)
    futures = [worker.submit(job(name), lambda _: None) for name in ("first", "second")]
    for _ in range(4):
        worker.step()
    assert engine.events == ["place first", "step", "read second", "step", "place second", "step", "step"]
    for _ in range(4):
        worker.step()
    assert engine.events[7:] == ["step"] * 4
    assert all(future.result(5).images for future in futures)


def test_slots_that_jobs_hold_or_wait_for_are_left_alone() -> None:
    engine = BusyEngine()
    worker = worker_over(engine)
    names = "abcdefgh"
    for name in names[:SLOTS]:
        worker.submit(job(name), lambda _: None)
    for name in names[SLOTS:]:
        worker.submit(job(name), lambda _: None)
    for _ in range(4 * len(names)):
        worker.step()
    # each was brought into its slot once: nobody's was given away between its loading and its turn
    placed = [event for event in engine.events if event.startswith("place")]
    assert sorted(placed) == [f"place {name}" for name in names]


def test_a_damaged_lora_in_line_fails_its_own_job_alone() -> None:
    engine = BusyEngine()
    worker = worker_over(engine)
    good, bad = (worker.submit(job(name), lambda _: None) for name in ("good", "damaged"))
    for _ in range(9):
        worker.step()
    assert good.result(5).images
    assert isinstance(bad.exception(5), AdapterError)


@pytest.fixture
def started() -> Iterator[Callable[[BusyEngine], Worker]]:
    workers: list[Worker] = []

    def start(engine: BusyEngine) -> Worker:
        workers.append(worker_over(engine))
        workers[-1].prepare_next()
        workers[-1].start()
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop()


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        sleep(0.02)
    pytest.fail("it did not come to pass")


def test_a_worker_compiles_after_its_first_picture_and_is_prepared_then(started: Any) -> None:
    engine = BusyEngine(compiles=lambda: iter([0.0, 0.5, 1.0]))
    worker = started(engine)
    assert worker.status.prepared == 0.0
    assert worker.submit(job(), lambda _: None).result(10).images
    wait_until(lambda: worker.status.prepared == 1.0)
    assert engine.events == ["step"] * 4 + ["compile 0.0", "compile 0.5", "compile 1.0"]
    assert worker.submit(job(), lambda _: None).result(10).images
    assert engine.events.count("compile 0.0") == 1


def test_while_programs_are_made_a_worker_is_not_prepared(started: Any) -> None:
    seen: list[float] = []

    def compiles() -> Iterator[float]:
        for share in (0.25, 1.0):
            seen.append(worker.status.prepared)
            yield share

    worker = started(BusyEngine(compiles=compiles))
    worker.submit(job(), lambda _: None).result(10)
    wait_until(lambda: worker.status.prepared == 1.0)
    assert seen == [0.0, 0.25]


def test_a_compiler_that_fails_leaves_a_worker_that_draws(started: Any) -> None:
    def fails() -> Iterator[float]:
        yield 0.1
        raise RuntimeError("PassManager::run failed")

    worker = started(BusyEngine(compiles=fails))
    worker.submit(job(), lambda _: None).result(10)
    wait_until(lambda: worker.status.prepared == 1.0)
    assert worker.submit(job(), lambda _: None).result(10).images


def test_devices_compile_once_all_of_them_have_loaded() -> None:
    events: list[str] = []
    engines = [BusyEngine(compiles=lambda: iter([0.5, 1.0]), events=events) for _ in range(2)]
    runner = build_runner(*engines)  # type: ignore[arg-type]  # stand-ins
    try:
        for worker in runner._workers:
            worker._previews = NothingLearned()  # type: ignore[assignment]
        runner.warm_up()
        wait_until(lambda: all(device.prepared == 1.0 for device in runner.snapshot().devices))
        # the first picture of each: that is when networks are loaded
        assert events[:8] == ["step"] * 8
        assert events.count("compile 1.0") == 2
    finally:
        for worker in runner._workers:
            worker.stop()
