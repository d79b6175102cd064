import asyncio
from dataclasses import replace

import pytest
import torch

from conftest import make_job
from fakes import FakeRunner
from schnell.engine.engine import Engine
from schnell.models.folder import ModelFolder
from schnell.serving.batch_size import BatchSizer
from schnell.serving.queue import JobQueue
from schnell.serving.runner import InProcessRunner
from schnell.serving.worker import LaneKey, Worker
from schnell.spec import Progress, Size


@pytest.mark.parametrize("steps", [1, 4])
async def test_the_fake_reports_what_a_worker_reports(mini: ModelFolder, steps: int) -> None:
    sizer: BatchSizer[LaneKey] = BatchSizer()
    worker = Worker(Engine(mini, torch.device("cpu")), JobQueue(sizer.limit), sizer)
    worker.start()
    real = InProcessRunner(worker)
    job = replace(make_job("red apple", size=Size(256, 256), steps=steps), wants_previews=True)
    reports: list[list[Progress]] = [[], []]
    try:
        await real.run(replace(job, id="teaches the previews"), lambda _: None)
        await real.run(job, reports[0].append)
        await FakeRunner().run(job, reports[1].append)
    finally:
        await asyncio.to_thread(worker.stop)
    expected, found = ([replace(each, previews=()) for each in seen] for seen in reports)
    assert found == expected
    assert [len(each.previews) for each in reports[1]] == [len(each.previews) for each in reports[0]]
