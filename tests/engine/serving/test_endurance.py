"""Many requests over many more LoRAs than slots: nothing fails, nothing grows."""

import gc
import os
import resource
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import torch

from adapter_files import random_adapters
from conftest import make_job
from schnell.engine.device import FLOAT32
from schnell.engine.engine import Engine
from schnell.models.folder import open_model_folder
from schnell.serving.active_job import LaneKey
from schnell.serving.batch_size import BatchSizer
from schnell.serving.scheduler import Scheduler
from schnell.serving.worker import Worker
from schnell.spec import JobOutcome, Progress, Size

REQUESTS = 10_000 if os.environ.get("SCHNELL_SOAK") else 1_000
LORAS, SLOTS, IN_FLIGHT = 200, 8, 32
MEMORY_BYTES = 2_000_000


def ignore(_: Progress) -> None:
    return


def test_requests_over_two_hundred_loras_fail_nowhere_and_keep_memory(random_flux: Path, tmp_path: Path) -> None:
    engine = Engine(
        open_model_folder(random_flux), torch.device("cpu"), adapter_slots=SLOTS, adapter_bytes=MEMORY_BYTES
    )
    uses = random_adapters(tmp_path, engine.network("transformer", FLOAT32), ranks=[4] * LORAS)
    sizer: BatchSizer[LaneKey] = BatchSizer()
    worker = Worker(engine, Scheduler(sizer.limit, adapter_slots=SLOTS), sizer)
    worker.start()
    waiting: list[Future[JobOutcome]] = []
    settled = 0
    for i in range(REQUESTS):
        job = make_job(f"tree {i % 50}", i, size=Size(256, 256), steps=1, go_fast=False)
        waiting.append(worker.submit(replace(job, id=str(i), adapters=(uses[i * 37 % LORAS],)), ignore))
        if len(waiting) == IN_FLIGHT:
            assert waiting.pop(0).result(60).images
        if i == REQUESTS // 5:
            gc.collect()
            settled = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert all(future.result(60).images for future in waiting)
    worker.stop()
    assert engine._loaded_model(FLOAT32).slots.memory.nbytes <= MEMORY_BYTES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - settled < 60_000
