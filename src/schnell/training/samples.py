"""Sample pictures drawn during a training, to see what the LoRA has learned so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image

from schnell.engine.denoise import begin_drawing, denoise_step
from schnell.engine.flux import VelocityNetwork
from schnell.engine.pictures import decode_latents, fit_to_size
from schnell.engine.text import PromptEmbedding
from schnell.models.folder import ModelFolder
from schnell.spec import DEFAULT_LORA_SCALE, Size, resolve_size
from schnell.training.examples import embed_prompts, move_prompt
from schnell.training.low_rank import BaseModel, LowRankLayers, set_scale

_STEPS: Final = 4


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws the same prompts with the same seeds each time, in four steps, at one size."""

    prompts: tuple[PromptEmbedding, ...]
    vae: Any
    folder: ModelFolder
    size: Size

    def draw(self, transformer: VelocityNetwork) -> list[Image.Image]:
        """One picture a prompt, picture i with seed i, by the transformer with its LoRA layers as they are now."""
        grid = self.folder.token_grid(self.size)
        drawings = [begin_drawing(prompt, seed, _STEPS, grid) for seed, prompt in enumerate(self.prompts)]
        # one at a time: a batch would need memory that the training has taken
        pictures = [self._finish(transformer, [drawing]) for drawing in drawings]
        return [fit_to_size(picture, self.size, self.folder.draw_scale) for picture in pictures]

    def _finish(self, transformer: VelocityNetwork, drawings: list[Any]) -> Image.Image:
        for _ in range(_STEPS):
            drawings = denoise_step(transformer, drawings)
        return decode_latents(self.vae, drawings)[0]


def build_sampler(prompts: Sequence[str], base: BaseModel, megapixels: str = "0.25") -> Sampler:
    """A sampler for these prompts, on squares of `megapixels`."""
    embedded = tuple(move_prompt(prompt, base.device) for prompt in embed_prompts(prompts, base))
    return Sampler(embedded, base.load("vae"), base.folder, resolve_size("1:1", megapixels))


def measure_change(
    transformer: VelocityNetwork, layers: LowRankLayers, prompts: Sequence[PromptEmbedding], grid: Size
) -> float:
    """How far the LoRA moves what is drawn: the root mean square of the change of latents, which have unit variance.

    Prompt i is drawn with seed i by the base and with the LoRA at the API's default scale.
    """
    drawn = []
    for scale in (0.0, DEFAULT_LORA_SCALE):
        set_scale(layers, scale)
        drawings = [begin_drawing(prompt, seed, _STEPS, grid) for seed, prompt in enumerate(prompts)]
        for _ in range(_STEPS):
            drawings = [after for drawing in drawings for after in denoise_step(transformer, [drawing])]
        drawn.append(torch.stack([drawing.latents for drawing in drawings]))
    set_scale(layers, 1.0)
    return float((drawn[1] - drawn[0]).square().mean().sqrt())


def make_sheet(pictures: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """One picture with all of these, which have one size, in rows of `columns` on white."""
    width, height = pictures[0].size
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * width, number // columns * height))
    return sheet


def write_samples(sampler: Sampler, transformer: VelocityNetwork, folder: Path, step: int) -> None:
    """Draw the sample prompts and write them as one sheet, `step-000123.webp`."""
    folder.mkdir(parents=True, exist_ok=True)
    make_sheet(sampler.draw(transformer)).save(folder / f"step-{step:06d}.webp")
