"""The real worker and queue over an engine without arithmetic: random traffic, faults in every stage."""

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
from PIL import Image

from schnell.clock import Stopwatch
from schnell.engine.denoise import Drawing, noise_levels
from schnell.engine.device import FLOAT32, Precision
from schnell.engine.engine import Engine, PromptRequest
from schnell.engine.slot_routing import SlotUse
from schnell.engine.text import PromptEmbedding
from schnell.errors import AdapterError, GenerationFailedError
from schnell.serving.batch_size import BatchSizer
from schnell.serving.queue import JobQueue
from schnell.serving.worker import LaneKey, Worker
from schnell.spec import AdapterUse, GeneratedImage, GenerationSpec, Job, JobOutcome, Progress, Size

SLOTS = 4
STAGES = ("place", "encode", "begin", "step", "decode", "finish", "listen")


@dataclass
class Folder:
    sequence_length: int = 4
    name: str = "fake"

    def token_grid(self, size: Size) -> Size:
        return Size(size.width // 256, size.height // 256)


@dataclass
class EngineWithoutArithmetic:
    """Does what `Engine` promises, with one number for latents; raises where a job's prompt says so."""

    folder: Folder = field(default_factory=Folder)
    in_slot: dict[int, str] = field(default_factory=dict)

    def precision_for(self, *, go_fast: bool) -> Precision:  # noqa: ARG002 - one precision is enough here
        return FLOAT32

    def place_adapters(
        self, adapters: Sequence[AdapterUse], slots: Sequence[int], precision: Precision
    ) -> tuple[SlotUse, ...]:
        assert precision == FLOAT32
        for adapter, slot in zip(adapters, slots, strict=True):
            assert 1 <= slot <= SLOTS
            if adapter.name == "damaged":
                raise AdapterError("this LoRA is damaged")
            self.in_slot[slot] = adapter.sha256
        return tuple(SlotUse(slot, adapter.scale) for adapter, slot in zip(adapters, slots, strict=True))

    def adapter_warnings(self, adapters: Sequence[AdapterUse], precision: Precision) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    def encode_prompts(self, requests: Sequence[PromptRequest], precision: Precision) -> list[PromptEmbedding]:
        assert precision == FLOAT32
        fail_if(any(request.prompt == "encode" for request in requests))
        return [cast("PromptEmbedding", Prompt(request)) for request in requests]

    def begin(self, job: Job, prompt: PromptEmbedding, slots: tuple[SlotUse, ...]) -> list[Drawing]:
        fail_if(job.spec.prompt == "begin")
        grid, levels = self.folder.token_grid(job.spec.size), noise_levels(job.spec.steps)
        return [Drawing(torch.zeros(1, 1), levels, 0, grid, prompt, slots) for _ in range(job.spec.num_outputs)]

    def step(self, drawings: Sequence[Drawing], precision: Precision) -> list[Drawing]:
        assert precision == FLOAT32
        requests = [cast("Any", drawing.prompt).request for drawing in drawings]
        for request in requests:
            # a picture never steps while another LoRA sits in a slot of its own
            assert [self.in_slot[use.slot] for use in request.slots] == [use.sha256 for use in request.adapters]
        fail_if(any(request.prompt == "step" for request in requests))
        return [replace(drawing, step=drawing.step + 1, estimate=drawing.latents) for drawing in drawings]

    def decode(self, drawings: Sequence[Drawing], precision: Precision) -> list[Image.Image]:
        assert precision == FLOAT32
        assert all(drawing.is_done for drawing in drawings)
        fail_if(any(cast("Any", drawing.prompt).request.prompt == "decode" for drawing in drawings))
        return [Image.new("RGB", (8, 8)) for _ in drawings]

    def finish(self, job: Job, index: int, drawn: Image.Image, watch: Stopwatch) -> GeneratedImage:  # noqa: ARG002
        fail_if(job.spec.prompt == "finish")
        return GeneratedImage(index, index, job.id.encode(), "image/webp", 8, 8, {})


@dataclass
class Prompt:
    request: PromptRequest
    was_truncated: bool = False


def fail_if(condition: bool) -> None:
    if condition:
        raise RuntimeError("as a kernel fails")


class NothingLearned:
    """Previews need real latents."""

    is_ready = False

    def learn(self, *_: object) -> None:
        return


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
    assert not queue._leases.held


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
