"""How far pictures move when weights are quantized: the embedded model in each form, against itself in bfloat16."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Final

import torch
from PIL import Image

from schnell.benchmarks.result import BenchmarkResult
from schnell.benchmarks.single import PROMPT, make_job, psnr
from schnell.engine.engine import Engine
from schnell.engine.loaded_model import PromptRequest
from schnell.engine.memory_sums import LARGEST_PIXELS, Form
from schnell.models.catalogue import DEFAULT_MODEL, find_model
from schnell.models.folder import ModelFolder

BFLOAT16_FORM: Final = Form("bfloat16", None, None, None, "device", 4, 16, rows=16, whole_pixels=LARGEST_PIXELS)
#: The forms that a plan chooses from, by what is quantized in them.
FORMS: Final = {
    "float8": replace(BFLOAT16_FORM, precision="float8"),
    "float8, modulation and T5 in 8 bits": replace(
        BFLOAT16_FORM, precision="float8", modulation="int8_weights", text="int8_weights"
    ),
    "int8": replace(BFLOAT16_FORM, precision="int8"),
    "int8, modulation and T5 in 8 bits": replace(
        BFLOAT16_FORM, precision="int8", modulation="int8_weights", text="int8_weights"
    ),
    "int4, modulation and T5 in 8 bits": replace(
        BFLOAT16_FORM, precision="int4", modulation="int8_weights", text="int8_weights"
    ),
}
_BATCH: Final = 8
_STEPS: Final = 4
_NAMES: Final = (
    "red apple", "rocket", "panda", "evergreen tree", "pizza", "snowman", "dog face", "automobile", "sunflower",
    "house", "guitar", "umbrella", "cat face", "key", "balloon", "mushroom", "crown", "bicycle", "fish", "alarm clock",
    "hamburger", "butterfly", "light bulb",
)  # fmt: skip
PROMPTS: Final = (PROMPT, *_NAMES)


@dataclass(frozen=True, slots=True)
class Likeness:
    """Peak signal-to-noise ratios between pictures of the same prompts and seeds, in dB."""

    median_db: float
    lowest_db: float

    @classmethod
    def between(cls, pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> "Likeness":
        """The likeness of two lists of pictures, pair by pair."""
        found = [psnr(first, second) for first, second in zip(pictures, others, strict=True)]
        return cls(median(found), min(found))


def quantized_quality() -> BenchmarkResult:
    """24 prompts at 1 MP in four steps: each quantized form beside bfloat16. The figure is the worst form's median."""
    folder = find_model(DEFAULT_MODEL)
    exact = list(draw_in_form(folder, BFLOAT16_FORM, PROMPTS))
    found = {name: Likeness.between(list(draw_in_form(folder, form, PROMPTS)), exact) for name, form in FORMS.items()}
    return BenchmarkResult(
        ours=min(each.median_db for each in found.values()),
        unit="dB",
        ours_is="the form that is least alike, median of 24 pictures",
        peer_is="bfloat16",
        details={
            name: {"median_db": round(each.median_db, 1), "lowest_db": round(each.lowest_db, 1)}
            for name, each in found.items()
        },
    )


def draw_in_form(folder: ModelFolder, form: Form, prompts: Sequence[str]) -> Iterator[Image.Image]:
    """One picture for each prompt, at the size that the model draws at, with seeds that differ."""
    engine = Engine(folder, torch.device("cpu"), form=form)
    precision = engine.precision_for(go_fast=True)
    for start in range(0, len(prompts), _BATCH):
        jobs = [make_job(text, seed=7 + start + index) for index, text in enumerate(prompts[start : start + _BATCH])]
        embeddings = engine.encode_prompts([PromptRequest(job.spec.prompt) for job in jobs], precision)
        drawings = [each for job, text in zip(jobs, embeddings, strict=True) for each in engine.begin(job, text)]
        for _ in range(_STEPS):
            drawings = engine.step(drawings, precision)
        yield from (picture for drawing in drawings for picture in engine.decode([drawing], precision))
