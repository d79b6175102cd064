import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from conftest import make_job
from engines import EngineWithoutArithmetic, NothingLearned
from schnell.engine.engine import Engine, generate
from schnell.errors import AdapterError, GenerationFailedError
from schnell.models.folder import ModelFolder
from schnell.serving.batch_size import BatchSizer
from schnell.serving.queue import JobQueue
from schnell.serving.runner import InProcessRunner
from schnell.serving.worker import LaneKey, Worker
from schnell.spec import AdapterUse, Job, JobOutcome, Progress, Size

SMALL = Size(256, 256)


def ignore(_: Progress) -> None:
    return


@pytest.fixture(scope="module")
def engine(mini: ModelFolder) -> Engine:
    return Engine(mini, torch.device("cpu"))


def build_worker(engine: Engine) -> Worker:
    sizer: BatchSizer[LaneKey] = BatchSizer()
    return Worker(engine, JobQueue(sizer.limit), sizer)


@pytest.fixture
def worker(engine: Engine) -> Iterator[Worker]:
    worker = build_worker(engine)
    worker.start()
    yield worker
    worker.stop()


def small_job(job_id: str, prompt: str = "red apple", **spec: Any) -> Job:
    return replace(make_job(prompt, **({"size": SMALL} | spec)), id=job_id)


def test_a_job_in_the_queue_gives_the_bytes_of_a_job_alone(engine: Engine, worker: Worker) -> None:
    job = small_job("one")
    queued: JobOutcome = worker.submit(job, ignore).result(60)
    assert queued.images[0].data == generate(engine, job, ignore).images[0].data


def test_every_job_of_a_mixed_crowd_ends_with_its_own_picture(worker: Worker) -> None:
    jobs = [
        small_job(f"{i}", f"{name} on a {colour} background", steps=1 + i % 4, num_outputs=1 + i % 2)
        for i, (name, colour) in enumerate(
            [("apple", "red"), ("tree", "blue"), ("car", "pink"), ("cat", "black"), ("sun", "white")]
        )
    ]
    outcomes = [future.result(60) for future in [worker.submit(job, ignore) for job in jobs]]
    assert [len(outcome.images) for outcome in outcomes] == [job.spec.num_outputs for job in jobs]
    assert [outcome.images[0].receipt["prompt"] for outcome in outcomes] == [job.spec.prompt for job in jobs]


def test_progress_counts_every_step(worker: Worker) -> None:
    seen: list[Progress] = []
    worker.submit(small_job("steps", steps=3), seen.append).result(60)
    assert [progress.step for progress in seen if progress.stage == "denoise"] == [1, 2, 3]


def test_a_cancelled_job_stops_within_one_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, steps, futures = build_worker(engine), [], list[Future[JobOutcome]]()
    step = engine.step

    def count_and_cancel(*arguments: object) -> object:
        steps.append(1)
        futures[0].cancel()
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "step", count_and_cancel)
    futures.append(worker.submit(small_job("cancelled"), ignore))
    worker.start()
    other = worker.submit(small_job("after", "tree", size=Size(512, 256)), ignore)
    with pytest.raises(CancelledError):
        futures[0].result(10)
    monkeypatch.setattr(engine, "step", step)
    assert other.result(60).images
    worker.stop()
    assert futures[0].cancelled()
    assert len(steps) <= 2


def test_a_row_whose_step_fails_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, step = build_worker(engine), engine.step

    def refuse_bad(drawings: list, precision: object) -> object:  # type: ignore[type-arg]
        if any(drawing.steps == 3 for drawing in drawings):
            raise RuntimeError("this kernel does not like three steps")
        return step(drawings, precision)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "step", refuse_bad)
    good = [worker.submit(small_job(f"good-{i}"), ignore) for i in range(3)]
    bad = worker.submit(small_job("bad", steps=3), ignore)
    worker.start()
    assert all(future.result(60).images for future in good)
    with pytest.raises(GenerationFailedError):
        bad.result(60)
    worker.stop()


def test_latents_that_are_not_numbers_fail_their_job_only(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, step = build_worker(engine), engine.step

    def poison(drawings: list, precision: object) -> object:  # type: ignore[type-arg]
        stepped = step(drawings, precision)  # type: ignore[arg-type]
        return [replace(d, latents=d.latents * float("nan")) if d.steps == 2 else d for d in stepped]

    monkeypatch.setattr(engine, "step", poison)
    good, bad = worker.submit(small_job("good"), ignore), worker.submit(small_job("bad", steps=2), ignore)
    worker.start()
    assert good.result(60).images
    with pytest.raises(GenerationFailedError, match="not a number"):
        bad.result(60)
    worker.stop()


def test_a_prompt_that_cannot_be_encoded_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, encode = build_worker(engine), engine.encode_prompts

    def refuse_bad(requests: list, precision: object) -> object:  # type: ignore[type-arg]
        if any("refuse me" in request.prompt for request in requests):
            raise RuntimeError("the tokenizer does not like this")
        return encode(requests, precision)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "encode_prompts", refuse_bad)
    good = [worker.submit(small_job(f"good-{i}", f"apple {i}"), ignore) for i in range(2)]
    bad = worker.submit(small_job("bad", "refuse me"), ignore)
    worker.start()
    assert all(future.result(60).images for future in good)
    with pytest.raises(GenerationFailedError):
        bad.result(60)
    worker.stop()


def test_a_lora_that_cannot_be_loaded_fails_its_own_job(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"not a file of tensors")
    damaged = AdapterUse("bad", "f" * 64, tmp_path / "bad.safetensors", 1.0)
    good = worker.submit(small_job("good"), ignore)
    bad = worker.submit(replace(small_job("bad"), adapters=(damaged,)), ignore)
    assert good.result(60).images
    assert isinstance(bad.exception(60), AdapterError)


@pytest.mark.parametrize("broken", ["decode", "finish", "begin"])
def test_a_stage_that_fails_for_one_job_fails_that_job_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    worker, stage = build_worker(engine), getattr(engine, broken)

    def refuse_bad(first: object, *others: object, **options: object) -> object:
        steps = first[0].steps if isinstance(first, list) else first.spec.steps  # type: ignore[attr-defined]
        if steps == 2:
            raise RuntimeError("as a kernel fails")
        return stage(first, *others, **options)

    monkeypatch.setattr(engine, broken, refuse_bad)
    good = [worker.submit(small_job(f"good-{i}"), ignore) for i in range(2)]
    bad = worker.submit(small_job("bad", steps=2, num_outputs=2), ignore)
    worker.start()
    assert all(future.result(60).images for future in good)
    with pytest.raises(GenerationFailedError):
        bad.result(60)
    worker.stop()


def test_a_preview_that_cannot_be_painted_fails_its_own_job(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = build_worker(engine)
    worker.start()
    worker.submit(small_job("teaches"), ignore).result(60)

    def refuse(*_: object) -> bytes:
        raise RuntimeError("no paint left")

    monkeypatch.setattr(worker._previews, "paint", refuse)
    good = worker.submit(small_job("good"), ignore)
    bad = worker.submit(replace(small_job("bad", steps=3), wants_previews=True), ignore)
    assert good.result(60).images
    with pytest.raises(GenerationFailedError):
        bad.result(60)
    worker.stop()


def test_a_listener_that_raises_fails_its_own_job(worker: Worker) -> None:
    def raises(_: Progress) -> None:
        raise RuntimeError("a bug of the caller")

    good = worker.submit(small_job("good"), ignore)
    bad = worker.submit(small_job("bad"), raises)
    assert good.result(60).images
    with pytest.raises(GenerationFailedError):
        bad.result(60)


def test_a_fault_of_the_worker_itself_does_not_end_the_service(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = build_worker(engine)
    monkeypatch.setattr(worker, "_tell_steps", lambda _: 1 / 0)
    first = worker.submit(small_job("first"), ignore)
    worker.start()
    with pytest.raises(GenerationFailedError):
        first.result(60)
    monkeypatch.undo()
    assert worker.submit(small_job("second"), ignore).result(60).images
    worker.stop()


async def test_cancelling_the_run_cancels_the_job(engine: Engine, worker: Worker) -> None:
    runner, started = InProcessRunner(worker), threading.Event()
    task = asyncio.create_task(runner.run(small_job("x", size=Size(1024, 1024)), lambda _: started.set()))
    await asyncio.to_thread(started.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    outcome = await runner.run(small_job("y"), ignore)
    assert outcome.images
    assert runner.snapshot().queued == 0


async def test_the_estimate_knows_the_cost_of_a_step_after_the_first_picture(worker: Worker) -> None:
    runner, job = InProcessRunner(worker), small_job("x")
    await runner.run(job, ignore)
    assert runner.estimate(job.spec, "team").expected_seconds > 0
    large = replace(job.spec, size=Size(1024, 1024))
    assert runner.estimate(large, "team").expected_seconds > runner.estimate(job.spec, "team").expected_seconds


def test_previews_come_with_every_step_for_those_who_ask(worker: Worker) -> None:
    worker.submit(small_job("teaches"), ignore).result(60)
    seen: list[Progress] = []
    job = replace(small_job("previewed", steps=3, num_outputs=2), wants_previews=True)
    worker.submit(job, seen.append).result(60)
    *steps, last = [progress for progress in seen if progress.stage == "denoise"]
    assert len(steps) == 2
    assert all(len(progress.previews) == 2 and progress.previews[0].startswith(b"\x89PNG") for progress in steps)
    assert (last.step, last.previews) == (3, ())


class WatchedEngine(EngineWithoutArithmetic):
    """Notes whether a step ran beside finishing, and finishes a picture only together with another one."""

    def __init__(self) -> None:
        super().__init__()
        self.finishing, self.steps_beside, self.together = 0, 0, threading.Barrier(2)

    def step(self, drawings: Any, precision: Any) -> Any:
        self.steps_beside += self.finishing > 0
        return super().step(drawings, precision)

    def finish(self, *given: Any) -> Any:
        self.finishing += 1
        self.together.wait(30)
        self.finishing -= 1
        return super().finish(*given)


def test_on_a_cpu_pictures_are_finished_between_steps_as_many_at_once_as_there_are_threads() -> None:
    engine: Any = WatchedEngine()
    worker = build_worker(engine)
    cast("Any", worker)._previews = NothingLearned()
    worker.start()
    try:
        jobs = [small_job(f"{number}", steps=1 + number % 3, num_outputs=2) for number in range(12)]
        for outcome in [worker.submit(job, ignore) for job in jobs]:
            assert len(outcome.result(60).images) == 2
    finally:
        worker.stop()
    assert engine.steps_beside == 0
