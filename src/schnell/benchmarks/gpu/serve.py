"""A server's worker on the card: many clients, many LoRAs, against diffusers with `set_adapters`."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import quantiles
from time import perf_counter
from typing import Any, Final

from PIL import Image

from schnell.benchmarks.gpu.drawing import make_job
from schnell.benchmarks.gpu.lab import Figures, Lab
from schnell.benchmarks.gpu.random_loras import SCALE, RandomLora, make_loras
from schnell.benchmarks.gpu.random_model import RandomEngine
from schnell.benchmarks.gpu.stock import draw_stock, load_adapters, stock_pipeline
from schnell.engine.denoise import Drawing
from schnell.engine.device import Precision
from schnell.engine.engine import Engine
from schnell.serving.batch_size import BatchSizer
from schnell.serving.queue import JobQueue
from schnell.serving.worker import Worker
from schnell.spec import Job

_REQUESTS: Final = 64
_CLIENTS: Final = 16
_LORAS: Final = 16


class BusyEngine(RandomEngine):
    """An engine that adds up the seconds in which it is inside a step or a decoder; what is left is idle."""

    busy = 0.0
    lab: Lab

    def step(self, drawings: Sequence[Drawing], precision: Precision) -> list[Drawing]:
        """As the engine does, timed to the device's end."""
        begin = perf_counter()
        stepped = super().step(drawings, precision)
        self.lab.synchronize()
        self.busy += perf_counter() - begin
        return stepped

    def decode(self, drawings: Sequence[Drawing], precision: Precision, *, tiles: bool = False) -> list[Image.Image]:
        """As the engine does, which waits for the pixels."""
        begin = perf_counter()
        pictures = super().decode(drawings, precision, tiles=tiles)
        self.busy += perf_counter() - begin
        return pictures


def serve(lab: Lab) -> Figures:
    """Pictures a second at 0.25 MP, p95, the share of time in which the card had nothing to do; the rate of peft."""
    requests, kinds = (8, 2) if lab.is_dry else (_REQUESTS, _LORAS)
    loras = make_loras(lab, [4 if lab.is_dry else 16] * kinds)
    engine = BusyEngine(lab.shape, lab.folder, lab.device)
    engine.lab = lab
    jobs = [make_job(lab.shape.small, seed, [loras[seed % kinds].use]) for seed in range(requests)]
    sizer: BatchSizer[Any] = BatchSizer()
    _serve_all(engine, jobs[:_CLIENTS], sizer)
    engine.busy = 0.0
    begin = perf_counter()
    latencies = _serve_all(engine, jobs, sizer)
    seconds = perf_counter() - begin
    yield "images_s", requests / seconds
    yield "p95_s", quantiles(latencies, n=20)[-1]
    yield "idle_share", 1 - engine.busy / seconds
    yield "rows_a_step", sizer.limit(next(iter(sizer.seconds_per_row())))
    del engine
    lab.free()
    name, rate = lab.attempt("diffusers_images_s", lambda: _stock_rate(lab, loras, requests))
    yield name, rate
    if isinstance(rate, float):
        yield "ratio", requests / seconds / rate


def _serve_all(engine: Engine, jobs: Sequence[Job], sizer: "BatchSizer[Any]") -> list[float]:
    """Run all jobs from the clients, each of which waits for its picture; gives each job's seconds."""
    worker = Worker(engine, JobQueue(sizer.limit, adapter_slots=engine.adapter_slots), sizer)
    worker.start()
    latencies: list[float] = []
    lock = threading.Lock()

    def ask(job: Job) -> None:
        begin = perf_counter()
        worker.submit(job, lambda _: None).result()
        with lock:
            latencies.append(perf_counter() - begin)

    try:
        with ThreadPoolExecutor(_CLIENTS) as clients:
            list(clients.map(ask, jobs))
    finally:
        worker.stop()
    return latencies


def _stock_rate(lab: Lab, loras: Sequence[RandomLora], requests: int) -> float:
    """The peer's pictures a second, one after the other, over as many of the requests as there is time for."""
    pipeline = stock_pipeline(lab)
    names = load_adapters(pipeline, loras)

    def ask(index: int) -> None:
        pipeline.set_adapters([names[index % len(names)]], [SCALE])
        draw_stock(lab, pipeline, lab.shape.small, f"red apple {index}")

    ask(0)
    done, begin = 0, perf_counter()
    while done < requests and lab.seconds_left() > 1:
        ask(done)
        done += 1
    return done / (perf_counter() - begin)
