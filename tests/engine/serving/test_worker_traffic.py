"""The real worker and queue over an engine without arithmetic: random traffic, faults in every stage."""

import random
from collections import Counter
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import SLOTS, EngineWithoutArithmetic, NothingLearned, fail_if
from schnell.engine.engine import Engine
from schnell.errors import AdapterError, GenerationFailedError
from schnell.serving.batch_size import BatchSizer
from schnell.serving.queue import JobQueue
from schnell.serving.worker import LaneKey, Worker
from schnell.spec import AdapterUse, GenerationSpec, Job, JobOutcome, Progress, Size

STAGES = ("place", "encode", "begin", "step", "decode", "finish", "listen")


@dataclass(frozen=True)
class Arrival:
    team: int
    size: int
    outputs: int
    steps: int
    loras: frozenset[int]
    fault: str | None
    is_cancelled: bool


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        team=st.integers(0, 20),
        size=st.sampled_from([256, 512]),
        outputs=st.integers(1, 4),
        steps=st.integers(1, 4),
        loras=st.frozensets(st.integers(0, 12), max_size=SLOTS),
        fault=st.sampled_from((None,) * 12 + STAGES),
        is_cancelled=st.sampled_from([False] * 9 + [True]),
    ),
    min_size=1,
    max_size=40,
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(max_examples=40, deadline=None)
@given(arrivals=ARRIVALS, seed=st.integers(0, 1000))
def test_every_job_ends_once_as_it_should_and_nothing_is_held_at_the_end(arrivals: list[Arrival], seed: int) -> None:
    engine, sizer = EngineWithoutArithmetic(), BatchSizer[LaneKey]()
    queue = JobQueue(sizer.limit, adapter_slots=SLOTS)
    worker, chance = Worker(cast("Engine", engine), queue, sizer), random.Random(seed)
    worker._previews = NothingLearned()  # type: ignore[assignment]
    ended: Counter[int] = Counter()
    # some are there before the engine is, the others come while it works
    futures = []
    started = chance.randrange(len(arrivals))
    for number, arrival in enumerate(arrivals):
        if number == started:
            worker.start()
        future = worker.submit(job_of(number, arrival), listener_of(arrival))
        future.add_done_callback(lambda _, number=number: ended.update([number]))  # type: ignore[misc]
        futures.append(future)
        if arrival.is_cancelled:
            chance.choice(futures).cancel()
    for number, (arrival, future) in enumerate(zip(arrivals, futures, strict=True)):
        check_end(number, arrival, future)
    worker.stop()
    assert ended == Counter(range(len(arrivals)))
    assert queue.jobs == ()
    assert not queue.held_adapters()


def job_of(number: int, arrival: Arrival) -> Job:
    names = [f"lora {each}" for each in sorted(arrival.loras)]
    if arrival.fault == "place":
        names = [*names[: SLOTS - 1], "damaged"]
    prompt = arrival.fault or "fine"
    size = Size(arrival.size, arrival.size)
    spec = GenerationSpec(prompt, size, steps=arrival.steps, num_outputs=arrival.outputs)
    adapters = tuple(AdapterUse(name, name, Path(name), 1.0) for name in names)
    return Job(str(number), f"team {arrival.team}", spec, 0, adapters)


def listener_of(arrival: Arrival) -> Any:
    def listen(_: Progress) -> None:
        fail_if(arrival.fault == "listen")

    return listen


def check_end(number: int, arrival: Arrival, future: "Future[JobOutcome]") -> None:
    try:
        outcome = future.result()
    except CancelledError:
        return
    except (AdapterError, GenerationFailedError) as error:
        assert arrival.fault is not None, error  # noqa: PT017 - which error it may be depends on the arrival
        return
    assert arrival.fault is None
    assert [image.data for image in outcome.images] == [str(number).encode()] * arrival.outputs
