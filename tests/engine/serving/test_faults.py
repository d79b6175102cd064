"""Memory that runs out at every stage of the real worker, what stays of it, and who hears what."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from conftest import make_job
from engines import SLOTS, EngineWithoutArithmetic, NothingLearned
from schnell.engine import engine as engine_module
from schnell.engine.accelerator import is_out_of_memory
from schnell.engine.device import FLOAT32
from schnell.engine.engine import Engine
from schnell.engine.slot_linear import SlotLinear, SlotPlan
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.errors import GenerationFailedError, ModelBusyError, ModelFolderError, PictureTooLargeError, SchnellError
from schnell.models.folder import ModelFolder
from schnell.serving.batch_size import BatchSizer
from schnell.serving.queue import JobQueue
from schnell.serving.worker import LaneKey, Worker
from schnell.spec import AdapterUse, Job, Progress, Size

STAGES = ("place_adapters", "encode_prompts", "begin", "step", "decode")


def ignore(_: Progress) -> None:
    return


@dataclass
class SmallDevice(EngineWithoutArithmetic):
    """Has no memory at `stage` for prompts that say "large", as often as `times`, nor for more rows than `rows`.

    Notes what every failed call had allocated, and how much of that was still alive when the next call came.
    """

    stage: str = ""
    times: int = 1_000
    rows: int = 1_000
    calls: list[str] = field(default_factory=list)
    allocated: list["weakref.ref[Tensor]"] = field(default_factory=list)
    still_alive: int = 0
    released: int = 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in STAGES:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name + ("+tiles" if options.get("tiles") else ""))
            self.still_alive += sum(each() is not None for each in self.allocated)
            self.allocated.clear()
            self.run_out(name, arguments, tiles=options.get("tiles", False))
            return found(*arguments, **options)

        return call

    def run_out(self, name: str, arguments: tuple[Any, ...], *, tiles: bool) -> None:
        too_many = name == "step" and len(arguments[0]) > self.rows
        too_large = name == self.stage and self.times > 0 and not tiles and "large" in text_of(arguments)
        if too_many or too_large:
            self.times -= too_large
            activations = torch.zeros(1000)
            self.allocated.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def release_memory(self) -> None:
        # what the failed call held is gone before the device is asked for it back
        self.still_alive += sum(each() is not None for each in self.allocated)
        self.released += 1


def text_of(arguments: tuple[Any, ...]) -> str:
    first = arguments[0]
    if isinstance(first, Job):
        return first.spec.prompt
    words = [getattr(getattr(each, "prompt", each), "request", each) for each in first]
    return " ".join(str(each) for each in words)


@contextmanager
def running(engine: EngineWithoutArithmetic, queue: JobQueue[LaneKey] | None = None) -> Iterator[Worker]:
    sizer: BatchSizer[LaneKey] = BatchSizer()
    worker = Worker(cast("Engine", engine), queue or JobQueue(sizer.limit, adapter_slots=SLOTS), sizer)
    worker._previews = NothingLearned()  # type: ignore[assignment]
    yield worker
    worker.stop()


def job(prompt: str, **spec: Any) -> Job:
    # a LoRA whose name is the prompt's tells the fake where to fail before any prompt is seen
    name = f"lora of {prompt}"
    adapters = (AdapterUse(name, name, Path(name), 1.0),)
    return replace(make_job(prompt, **({"size": Size(256, 256)} | spec)), id=prompt, adapters=adapters)


@pytest.mark.parametrize("stage", STAGES)
def test_a_picture_that_no_memory_is_found_for_fails_alone_and_the_next_one_is_drawn(stage: str) -> None:
    engine = SmallDevice(stage=stage)
    with running(engine) as worker:
        large = worker.submit(job("large", size=Size(1440, 1440)), ignore)
        worker.start()
        if stage == "decode":
            assert large.result(10).images
            return
        with pytest.raises(PictureTooLargeError, match="1440x1440 with one LoRA"):
            large.result(10)
        assert worker.submit(job("next"), ignore).result(10).images
        assert not worker.queue.held_adapters()


@pytest.mark.parametrize("stage", STAGES)
def test_beside_others_it_may_be_asked_for_again(stage: str) -> None:
    engine = SmallDevice(stage=stage)
    with running(engine) as worker:
        others = [worker.submit(job(f"other {i}"), ignore) for i in range(2)]
        large = worker.submit(job("large"), ignore)
        worker.start()
        assert all(future.result(10).images for future in others)
        if stage == "decode":
            assert large.result(10).images
            return
        with pytest.raises(ModelBusyError) as busy:
            large.result(10)
    assert busy.value.status == 503
    assert busy.value.retry_after >= 1


@pytest.mark.parametrize("stage", STAGES)
def test_memory_that_was_only_kept_is_given_back_before_another_try_which_then_succeeds(stage: str) -> None:
    engine = SmallDevice(stage=stage, times=1)
    with running(engine) as worker:
        large = worker.submit(job("large"), ignore)
        worker.start()
        assert large.result(10).images
    assert engine.released == 1


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_of_a_failed_call_is_alive_when_it_is_tried_again(stage: str) -> None:
    engine = SmallDevice(stage=stage, rows=2)
    with running(engine) as worker:
        futures = [worker.submit(job(prompt), ignore) for prompt in ("a", "b", "large", "c", "d")]
        worker.start()
        ends = [future.exception(10) for future in futures]
    assert engine.still_alive == 0
    assert engine.released > 0
    assert [type(end).__name__ for end in ends if end is not None] == [] if stage == "decode" else ["ModelBusyError"]


def test_a_batch_that_does_not_fit_is_drawn_in_halves_and_not_tried_again() -> None:
    engine = SmallDevice(rows=1)
    with running(engine) as worker:
        futures = [worker.submit(job(f"{i}"), ignore) for i in range(4)]
        worker.start()
        assert all(future.result(10).images for future in futures)
        assert worker._sizer.limit(worker.lane_of(job("0"))) == 1


def test_a_picture_that_does_not_fit_whole_is_decoded_in_tiles_and_so_are_the_next_ones_of_its_size() -> None:
    engine = SmallDevice(stage="decode")
    with running(engine) as worker:
        large = worker.submit(job("large"), ignore)
        worker.start()
        assert any("in strips" in warning for warning in large.result(10).warnings)
        engine.calls.clear()
        worker.submit(job("large again"), ignore).result(10)
        other_size = worker.submit(job("small", size=Size(512, 256)), ignore).result(10)
    decodes = [call for call in engine.calls if call.startswith("decode")]
    assert decodes == ["decode+tiles", "decode"]
    assert other_size.warnings == ()


@pytest.mark.parametrize("stage", STAGES)
def test_another_fault_keeps_nothing_alive_either(stage: str) -> None:
    class Broken(SmallDevice):
        def run_out(self, name: str, arguments: tuple[Any, ...], *, tiles: bool) -> None:
            try:
                super().run_out(name, arguments, tiles=tiles)
            except torch.OutOfMemoryError as cause:
                raise RuntimeError("as a kernel fails") from cause

    engine = Broken(stage=stage)
    with running(engine) as worker:
        bad, good = worker.submit(job("large"), ignore), worker.submit(job("good"), ignore)
        worker.start()
        assert good.result(10).images
        error = bad.exception(10)
    assert isinstance(error, GenerationFailedError)
    assert engine.still_alive == 0
    assert all(each() is None for each in engine.allocated)


def test_a_file_that_there_is_no_memory_for_is_the_machines_fault_and_says_so() -> None:
    class NoMemoryToEncode(EngineWithoutArithmetic):
        def finish(self, *_: object) -> Any:
            raise MemoryError

    with running(NoMemoryToEncode()) as worker:
        future = worker.submit(job("file"), ignore)
        worker.start()
        assert isinstance(future.exception(10), PictureTooLargeError)


def test_weights_that_do_not_fit_are_no_picture_that_is_too_large(
    mini: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine_module, "load_networks", no_memory)
    with pytest.raises(ModelFolderError, match="schnell-mini does not fit into the memory of cpu"):
        Engine(mini, torch.device("cpu")).load(FLOAT32)


def test_slots_that_could_not_grow_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    routing = SlotRouting(torch.device("cpu"))
    layer = SlotLinear(torch.nn.Linear(8, 8), routing, SlotPlan(count=3))
    part = layer.parts[0]
    part.write_low_rank(1, torch.ones(4, 8), torch.ones(8, 4))
    with routing.using([(SlotUse(1, 1.0),)]):
        before: Tensor = layer(torch.ones(1, 2, 8))
    zeros, left = layer._zeros, [1]

    def grow_once(*arguments: int) -> Tensor:
        if not left:
            raise torch.OutOfMemoryError("CUDA out of memory")
        left.pop()
        return zeros(*arguments)

    monkeypatch.setattr(layer, "_zeros", grow_once)
    with pytest.raises(torch.OutOfMemoryError):
        part.write_low_rank(2, torch.ones(64, 8), torch.ones(8, 64))
    monkeypatch.undo()
    part.clear(2)
    with routing.using([(SlotUse(1, 1.0),)]):
        assert torch.equal(layer(torch.ones(1, 2, 8)), before)
    part.write_low_rank(2, torch.ones(64, 8), torch.ones(8, 64))
    with routing.using([(SlotUse(2, 1.0),)]):
        assert layer(torch.ones(1, 2, 8)).shape == (1, 2, 8)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB, other allocations: 1.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_every_way_to_say_that_memory_ran_out_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_other_errors_are_not_taken_for_it() -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_errors_of_memory_are_errors_that_callers_know() -> None:
    assert issubclass(ModelBusyError, SchnellError)
    assert (ModelBusyError.status, ModelBusyError.retry_helps) == (503, True)
    assert (PictureTooLargeError.status, PictureTooLargeError.retry_helps) == (400, False)
