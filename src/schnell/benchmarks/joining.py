"""What it is worth that requests join a batch at any step: latency under load, against waiting for whole batches."""

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from statistics import quantiles
from time import perf_counter, sleep

from schnell.benchmarks.many_loras import CLIENTS, drawn_size_engine, serve_all
from schnell.benchmarks.result import BenchmarkResult, seconds_of
from schnell.benchmarks.single import make_job
from schnell.engine.engine import Engine
from schnell.serving.batch_size import BatchSizer
from schnell.serving.device_share import DeviceShare
from schnell.serving.jobs import Row
from schnell.serving.queue import JobQueue
from schnell.serving.worker import LaneKey, Worker
from schnell.spec import Job

REQUESTS, LOAD = 80, 0.7


class WholeBatchQueue(JobQueue[LaneKey]):
    """The same queue, but newcomers wait until the batch before them is done."""

    def _choose(
        self, rows: Sequence[Row[LaneKey]], lane: LaneKey, here: DeviceShare[LaneKey]
    ) -> tuple[Row[LaneKey], ...]:
        chosen = super()._choose(rows, lane, here)
        started = tuple(row for row in chosen if row.state == "denoising")
        return started or chosen


def joining() -> BenchmarkResult:
    """p95 latency of requests of 1 to 4 steps that arrive at random, at 70% of what the engine can do."""
    engine = drawn_size_engine()
    jobs = [_job(index) for index in range(REQUESTS)]
    serve_all(engine, jobs[:CLIENTS])
    capacity = REQUESTS / seconds_of(lambda: serve_all(engine, jobs))
    chance = random.Random(0)  # noqa: S311  # arrivals, not secrets
    gaps = [chance.expovariate(LOAD * capacity) for _ in jobs]
    peer = _latencies(engine, WholeBatchQueue, jobs, gaps)
    ours = _latencies(engine, JobQueue, jobs, gaps)
    return BenchmarkResult(
        ours=_percentile95(ours),
        unit="s",
        ours_is=f"p95 of {REQUESTS} requests, joining at the next step",
        peer=_percentile95(peer),
        peer_is="the same arrivals, waiting for whole batches",
        ratio=_percentile95(ours) / _percentile95(peer),
        details={
            "arrivals_per_s": LOAD * capacity,
            "mean_s": sum(ours) / len(ours),
            "peer_mean_s": sum(peer) / len(peer),
        },
    )


def _job(index: int) -> Job:
    job = make_job(seed=index, megapixels="0.25", go_fast=False)
    return replace(job, spec=replace(job.spec, steps=1 + index % 4))


def _latencies(
    engine: Engine, queue: type[JobQueue[LaneKey]], jobs: Sequence[Job], gaps: Sequence[float]
) -> list[float]:
    """Seconds from arrival to picture of each job; `gaps` are the seconds before each arrives."""
    sizer: BatchSizer[LaneKey] = BatchSizer()
    worker = Worker(engine, queue(sizer.limit, adapter_slots=engine.adapter_slots), sizer)
    worker.start()
    latencies: list[float] = []
    ended = threading.Semaphore(0)
    for job, gap in zip(jobs, gaps, strict=True):
        sleep(gap)
        arrived = perf_counter()

        # `arrived` as a default: the callback runs when the loop has gone on to other jobs
        def end(_: object, arrived: float = arrived) -> None:
            latencies.append(perf_counter() - arrived)
            ended.release()

        future = worker.submit(job, lambda _: None)
        future.add_done_callback(end)
    for _ in jobs:
        ended.acquire()
    worker.stop()
    return latencies


def _percentile95(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=20)[-1]
