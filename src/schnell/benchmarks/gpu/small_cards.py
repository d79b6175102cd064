"""Cards of 12 to 48 GB, played by this one: torch is given that much and no more. And what goes wrong on any card."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import torch
from PIL import Image

from schnell.benchmarks.gpu.drawing import draw, make_job
from schnell.benchmarks.gpu.lab import GIB, Figures, Lab
from schnell.benchmarks.gpu.random_model import RandomEngine
from schnell.engine.denoise import Drawing
from schnell.engine.device import Precision
from schnell.engine.engine import Engine
from schnell.engine.loaded_model import PromptRequest
from schnell.engine.text import PromptEmbedding
from schnell.serving.batch_size import BatchSizer
from schnell.serving.queue import JobQueue
from schnell.serving.worker import Worker
from schnell.spec import Job, JobOutcome

_CARDS: Final = (48, 24, 16, 12)
#: What CUDA itself takes on a card beside torch's tensors.
_CONTEXT_GIB: Final = 0.6


def small_cards(lab: Lab) -> Figures:
    """For each card: whether the server starts, draws a megapixel, and goes on after a request that is too large."""
    for card in _CARDS[:: 3 if lab.is_dry else 1]:
        yield lab.attempt(f"{card}_gb", partial(_on_card, lab, card))
        lab.free()


def _on_card(lab: Lab, card: int) -> dict[str, Any]:
    total = torch.cuda.get_device_properties(lab.device).total_memory / GIB if lab.on_cuda else card
    if total < card:
        return {"draws": None, "why": f"this card has {total:.1f} GiB"}
    memory = int((card - _CONTEXT_GIB) * GIB)
    if lab.on_cuda:
        torch.cuda.set_per_process_memory_fraction(memory / GIB / total, lab.device)
    engine = RandomEngine(lab.shape, lab.folder, lab.device, memory)
    precision = engine.precision_for(go_fast=True)
    peak = lab.peak_gib(lambda: draw(engine, [make_job(lab.shape.middle)], precision))
    seconds = lab.seconds(lambda: draw(engine, [make_job(lab.shape.middle)], precision), times=1)
    refused = _refusal(engine, [make_job(lab.shape.large, seed) for seed in range(2 if lab.is_dry else 16)], precision)
    lab.free()
    draw(engine, [make_job(lab.shape.middle)], precision)
    form = {"path": precision.name, "planned_gib": engine.plan.peak / GIB}
    return form | {"draws": True, "peak_gib": peak, "seconds": seconds, "too_large": refused, "recovers": True}


def _refusal(engine: Engine, jobs: Sequence[Job], precision: Precision) -> str:
    """What a batch that may be too large ends in."""
    try:
        draw(engine, jobs, precision)
    except torch.OutOfMemoryError:
        return "out of memory"
    return "drawn"


class FailingEngine(RandomEngine):
    """An engine that runs out of memory once in the stage that is named."""

    failing: str | None = None

    def _fail_once(self, stage: str) -> None:
        if self.failing == stage:
            self.failing = None
            raise torch.OutOfMemoryError(f"no memory for the {stage} of this check")

    def encode_prompts(self, requests: Sequence[PromptRequest], precision: Precision) -> list[PromptEmbedding]:
        """As the engine does, unless it fails."""
        self._fail_once("text")
        return super().encode_prompts(requests, precision)

    def step(self, drawings: Sequence[Drawing], precision: Precision) -> list[Drawing]:
        """As the engine does, unless it fails."""
        self._fail_once("step")
        return super().step(drawings, precision)

    def decode(self, drawings: Sequence[Drawing], precision: Precision, *, tiles: bool = False) -> list[Image.Image]:
        """As the engine does, unless it fails."""
        self._fail_once("decode")
        return super().decode(drawings, precision, tiles=tiles)


def failures(lab: Lab) -> Figures:
    """Out of memory in each stage of a busy worker: which jobs fail, and whether the next one is drawn."""
    engine = FailingEngine(lab.shape, lab.folder, lab.device)
    draw(engine, [make_job(lab.shape.small)], engine.precision_for(go_fast=False))
    for stage in ("text", "step", "decode"):
        yield lab.attempt(stage, partial(_survives, lab, engine, stage))


def _survives(lab: Lab, engine: FailingEngine, stage: str) -> dict[str, Any]:
    sizer: BatchSizer[Any] = BatchSizer()
    worker = Worker(engine, JobQueue(sizer.limit, adapter_slots=engine.adapter_slots), sizer)
    engine.failing = stage
    worker.start()
    try:
        futures = [worker.submit(make_job(lab.shape.small, seed), lambda _: None) for seed in range(3)]
        ended = [future.exception(timeout=lab.seconds_left()) for future in futures]
        after: JobOutcome = worker.submit(make_job(lab.shape.small), lambda _: None).result(lab.seconds_left())
    finally:
        worker.stop()
    return {"failed": sum(error is not None for error in ended), "of": len(ended), "next_is_drawn": bool(after.images)}
