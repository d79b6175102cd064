"""Many requests over many more LoRAs than slots, some cancelled, some failing: each ends once, nothing is kept."""

import gc
import random
import resource
from collections import Counter
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path

import torch

from adapter_files import random_adapters
from conftest import make_job
from counts import SOAK
from schnell.engine.device import FLOAT32
from schnell.engine.engine import Engine
from schnell.errors import AdapterError
from schnell.models.folder import open_model_folder
from schnell.serving.batch_size import BatchSizer
from schnell.serving.queue import JobQueue
from schnell.serving.worker import LaneKey, Worker
from schnell.spec import AdapterUse, Job, JobOutcome, Progress, Size

REQUESTS = 10_000 if SOAK else 100
LORAS, SLOTS, IN_FLIGHT = 200, 8, 32
MEMORY_BYTES = 2_000_000
CANCELLED, FAILING = 0.1, 0.02


def ignore(_: Progress) -> None:
    return


def test_requests_over_two_hundred_loras_end_once_each_and_keep_nothing(random_flux: Path, tmp_path: Path) -> None:
    engine = Engine(
        open_model_folder(random_flux), torch.device("cpu"), adapter_slots=SLOTS, adapter_bytes=MEMORY_BYTES
    )
    uses = random_adapters(tmp_path, engine.network("transformer", FLOAT32), ranks=[4] * LORAS)
    damaged = replace(uses[0], sha256="damaged", path=tmp_path / "damaged.safetensors")
    damaged.path.write_bytes(b"not a file of tensors")
    sizer: BatchSizer[LaneKey] = BatchSizer()
    # batches of one size: the process's peak follows the largest one so far, and a slow moment makes them small
    queue: JobQueue[LaneKey] = JobQueue(lambda _: 8, adapter_slots=SLOTS)
    worker, chance = Worker(engine, queue, sizer), random.Random(0)
    worker.start()
    waiting: list[tuple[Job, Future[JobOutcome]]] = []
    ended: Counter[str] = Counter()
    settled = 0
    for i in range(REQUESTS):
        job = random_job(i, uses, damaged, chance)
        future = worker.submit(job, ignore)
        future.add_done_callback(lambda _, job_id=job.id: ended.update([job_id]))  # type: ignore[misc]
        waiting.append((job, future))
        if chance.random() < CANCELLED:
            chance.choice(waiting)[1].cancel()
        while len(waiting) == IN_FLIGHT or (waiting and i == REQUESTS // 3):
            check(*waiting.pop(0))
        if i == REQUESTS // 3:
            gc.collect()
            settled = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for job, future in waiting:
        check(job, future)
    worker.stop()
    assert ended == Counter(str(i) for i in range(REQUESTS))
    assert queue.jobs == ()
    assert not queue.held_adapters()
    assert worker._started == {}
    assert engine._loaded_model(FLOAT32).slots.memory.nbytes <= MEMORY_BYTES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - settled < 60_000


def random_job(i: int, uses: list[AdapterUse], damaged: AdapterUse, chance: random.Random) -> Job:
    job = make_job(f"tree {i % 50}", i, size=Size(256, 256), steps=1, go_fast=False, num_outputs=chance.randint(1, 4))
    loras = tuple(chance.sample(uses, chance.randint(1, 4)))
    broken = (damaged,) if chance.random() < FAILING else ()
    return replace(job, id=str(i), team_id=f"team {i % 23}", adapters=loras + broken)


def check(job: Job, future: Future[JobOutcome]) -> None:
    try:
        outcome = future.result()
    except CancelledError:
        return
    except AdapterError:
        assert job.adapters[-1].sha256 == "damaged"
        return
    assert len(outcome.images) == job.spec.num_outputs
