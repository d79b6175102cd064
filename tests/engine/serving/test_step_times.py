"""Seconds of steps on a device that returns before it is done, as every GPU does: simulated, with its own clock."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import torch

from conftest import make_job
from engines import SLOTS, EngineWithoutArithmetic, NothingLearned
from schnell.engine import accelerator
from schnell.engine.accelerator import Timing, start_timing
from schnell.engine.denoise import Drawing
from schnell.engine.device import FLOAT32, Precision
from schnell.engine.engine import Engine
from schnell.serving.batch_size import BatchSizer
from schnell.serving.queue import JobQueue
from schnell.serving.worker import LaneKey, Worker
from schnell.spec import Job, Size

LARGE, SMALL = Size(1024, 1024), Size(512, 512)
#: Seconds of a step: what it takes whatever the rows, and for each row. One large row fills the device.
COSTS = {LARGE: (0.0, 0.076), SMALL: (0.012, 0.006)}


@dataclass
class SimulatedDevice:
    """Works off what it is asked in order, while the one who asked goes on; both have the same clock."""

    now: float = 0.0
    done_at: float = 0.0

    def ask(self, seconds: float) -> None:
        self.done_at = max(self.done_at, self.now) + seconds

    def start_timing(self) -> Timing:
        # as an event that is recorded behind all that was asked before
        begun = max(self.done_at, self.now)

        def stop() -> float:
            self.now = max(self.now, self.done_at)
            return self.done_at - begun

        return stop


@dataclass
class AsynchronousEngine(EngineWithoutArithmetic):
    """Its steps return at once; text and pictures of other jobs are under way on the device all the time."""

    simulated: SimulatedDevice = field(default_factory=SimulatedDevice)
    rows: list[tuple[Size, int]] = field(default_factory=list)

    def start_timing(self) -> Timing:
        return self.simulated.start_timing()

    def step(self, drawings: Sequence[Drawing], precision: Precision) -> list[Drawing]:
        size = Size(drawings[0].grid.width * 256, drawings[0].grid.height * 256)
        self.rows.append((size, len(drawings)))
        fixed, each = COSTS[size]
        self.simulated.ask(fixed + each * len(drawings))
        return super().step(drawings, precision)

    def decode(self, drawings: Sequence[Drawing], precision: Precision, *, tiles: bool = False) -> list[Any]:
        self.simulated.ask(0.025)
        return super().decode(drawings, precision, tiles=tiles)


def job(index: int, size: Size) -> Job:
    return replace(make_job(f"{index}", size=size), id=f"{index}", team_id=f"team {index % 5}")


@pytest.fixture
def worker() -> Worker:
    sizer: BatchSizer[LaneKey] = BatchSizer(first=1)
    engine = AsynchronousEngine()
    worker = Worker(cast("Engine", engine), JobQueue(sizer.limit, adapter_slots=SLOTS), sizer)
    worker._previews = NothingLearned()  # type: ignore[assignment]
    return worker


def lane_of(size: Size) -> LaneKey:
    return LaneKey(Size(size.width // 256, size.height // 256), FLOAT32)


def test_two_sizes_in_turns_get_the_seconds_and_the_batches_that_are_theirs(worker: Worker) -> None:
    futures = [worker.submit(job(i, (LARGE, SMALL)[i % 2]), lambda _: None) for i in range(120)]
    worker.start()
    outcomes = [future.result(30) for future in futures]
    known, engine = worker.status.seconds_per_row, cast("AsynchronousEngine", worker._engine)
    worker.stop()
    assert known[lane_of(LARGE)] == pytest.approx(0.076)
    # a large row fills the device: two at once were tried, and were no faster
    assert max(rows for size, rows in engine.rows if size == LARGE) == 2
    assert worker._sizer.limit(lane_of(LARGE)) == 1
    # small rows share what a step costs in any case
    assert worker._sizer.limit(lane_of(SMALL)) > 2
    spent = sum(COSTS[size][0] + COSTS[size][1] * rows for size, rows in engine.rows)
    assert worker.status.step_seconds == pytest.approx(spent)
    # a picture's seconds are those of its own four steps, not of what else was under way
    alone = min(outcome.timings["denoise"] for outcome in outcomes[::2])
    assert alone == pytest.approx(4 * 0.076, rel=0.01)


def test_a_gpu_is_timed_by_marks_between_which_nothing_else_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimulatedDevice()

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self.at = 0.0

        def record(self, stream: object) -> None:
            assert stream == "the current stream of cuda:1"
            self.at = max(device.done_at, device.now)

        def synchronize(self) -> None:
            device.now = max(device.now, self.at)

        def elapsed_time(self, last: "Event") -> float:
            assert device.now >= last.at
            return (last.at - self.at) * 1e3

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda chosen: f"the current stream of {chosen}")
    device.ask(5.0)  # of somebody before
    stop = start_timing(torch.device("cuda:1"))
    device.ask(0.25)
    assert stop() == pytest.approx(0.25)


def test_on_apple_and_intel_what_was_asked_before_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimulatedDevice()

    def synchronize(*_: object) -> None:
        device.now = max(device.now, device.done_at)

    monkeypatch.setattr(torch.mps, "synchronize", synchronize)
    monkeypatch.setattr(torch.xpu, "synchronize", synchronize)
    monkeypatch.setattr(accelerator, "perf_counter", lambda: device.now)
    for name in ("mps", "xpu:0"):
        device.ask(5.0)
        stop = start_timing(torch.device(name))
        device.ask(0.25)
        assert stop() == pytest.approx(0.25)
