"""Whether this card draws what the CPU draws: the embedded model, whose pictures mean something, on both."""

from functools import partial
from typing import Any

import torch
from PIL import Image

from schnell.benchmarks.gpu.drawing import PROMPTS, draw, make_job, psnr
from schnell.benchmarks.gpu.lab import Figures, Lab
from schnell.engine.engine import Engine
from schnell.models.catalogue import DEFAULT_MODEL, find_model
from schnell.spec import Size


def parity(lab: Lab) -> Figures:
    """Same bytes alone, and dB between alone and in a batch, and between this device and the CPU, for both paths."""
    model = find_model(DEFAULT_MODEL)
    card, processor = Engine(model, lab.device), Engine(model, torch.device("cpu"))
    size = Size(256, 256) if lab.is_dry else Size(1024, 1024)
    exact = processor.precision_for(go_fast=False)
    seeds = range(2 if lab.is_dry else len(PROMPTS))
    references = [draw(processor, [make_job(size, seed)], exact)[0] for seed in seeds]
    for go_fast in (False, True):
        name = "go_fast" if go_fast else "exact"
        yield lab.attempt(name, partial(_compare, card, size, references, go_fast=go_fast))


def _compare(card: Engine, size: Size, references: list[Image.Image], *, go_fast: bool) -> dict[str, Any]:
    precision = card.precision_for(go_fast=go_fast)
    jobs = [make_job(size, seed) for seed in range(len(references))]
    alone = [draw(card, [job], precision)[0] for job in jobs]
    again = [draw(card, [job], precision)[0] for job in jobs]
    together = draw(card, jobs, precision)
    return {
        "path": precision.name,
        "same_bytes": all(one.tobytes() == other.tobytes() for one, other in zip(alone, again, strict=True)),
        "batch_db": min(map(psnr, alone, together)),
        "cpu_db": min(map(psnr, alone, references)),
    }
