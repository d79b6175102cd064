"""What sections draw: jobs, batches of rows before a step, whole pictures, and how alike two of them are."""

from collections.abc import Sequence
from itertools import count
from typing import Final

import numpy as np
from PIL import Image

from schnell.engine.denoise import Drawing
from schnell.engine.device import Precision
from schnell.engine.engine import Engine
from schnell.engine.loaded_model import PromptRequest
from schnell.spec import AdapterUse, GenerationSpec, Job, Size

PROMPTS: Final = ("red apple on a blue background", "green tree", "yellow car", "white cat on a red background")
_IDS: Final = count()


def make_job(size: Size, seed: int = 7, adapters: Sequence[AdapterUse] = (), *, go_fast: bool = False) -> Job:
    """A job for one picture in four steps; its prompt goes with the seed."""
    spec = GenerationSpec(PROMPTS[seed % len(PROMPTS)], size, go_fast=go_fast, safety_checker=False)
    return Job(f"check-{next(_IDS)}", "check", spec, seed, tuple(adapters))


def start(engine: Engine, jobs: Sequence[Job], precision: Precision) -> list[Drawing]:
    """The rows of jobs before their first step. Each LoRA gets a slot, the first of them slot 1."""
    slot_of: dict[str, int] = {}
    drawings: list[Drawing] = []
    for job in jobs:
        slots = [slot_of.setdefault(use.sha256, 1 + len(slot_of)) for use in job.adapters]
        placed = engine.place_adapters(job.adapters, slots, precision)
        [prompt] = engine.encode_prompts([PromptRequest(job.spec.prompt, job.adapters, placed)], precision)
        drawings += engine.begin(job, prompt, placed)
    return drawings


def draw(engine: Engine, jobs: Sequence[Job], precision: Precision) -> list[Image.Image]:
    """The pictures of jobs of one size that share every step, each decoded alone."""
    rows = start(engine, jobs, precision)
    while not rows[0].is_done:
        rows = engine.step(rows, precision)
    return [engine.decode([row], precision)[0] for row in rows]


def psnr(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB, 100 for equal pictures."""
    error = float(np.mean((np.asarray(first, np.float64) - np.asarray(second, np.float64)) ** 2))
    return 100.0 if error == 0 else min(100.0, 10 * float(np.log10(255**2 / error)))


def size_name(size: Size) -> str:
    """As figures are named after it."""
    return f"{size.width}x{size.height}"
