"""Training the bundled LoRAs: file, card and preview of each, ready to be shipped beside the embedded model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from schnell.errors import TrainingError
from schnell.training.files import LoraOrigin, replace_file, write_lora
from schnell.training.low_rank import BaseModel
from schnell.training.plan import ProgressReport, TrainingProgress
from schnell.training.samples import build_sampler, make_sheet
from schnell_mini.last_blocks import LastBlocks
from schnell_mini.loop import StageBudget
from schnell_mini.lora_canvases import (
    CANVASES,
    Painter,
    choose_pictures,
    record_examples,
)
from schnell_mini.lora_drawing import install_file
from schnell_mini.lora_fitting import fit_factors, pool_tokens
from schnell_mini.lora_icons import list_packages
from schnell_mini.lora_styles import BUNDLED, BundledLora
from schnell_mini.pictures import Icons, compress_webp

#: The highest learning rate, and the part of it for LoRAs that are fitted again.
RATE: Final = 3e-3
AGAIN: Final = 0.5
MAX_BYTES: Final = 1_000_000
MAX_PREVIEW_BYTES: Final = 30_000
PREVIEW_QUALITIES: Final = (85, 70, 55, 40, 25, 10)
PREVIEW_PROMPTS: Final = ("red apple", "rocket", "cat face", "house")
_PREVIEW_SIDE: Final = 512
_LICENCE: Final = "Apache-2.0"


@dataclass(frozen=True, slots=True)
class BundlePlan:
    """Where the results go, how long each LoRA is fitted, and what share of the pictures is painted.

    `again`: a LoRA starts from the file that is there, at half the learning rates: the base model has changed a little.
    """

    out: Path
    minutes: float
    steps: int | None = None
    share: float = 1.0
    again: bool = False

    @property
    def budget(self) -> StageBudget:
        """For how long each is fitted."""
        return StageBudget(60 * self.minutes, self.steps)

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return RATE * (AGAIN if self.again else 1.0)


@dataclass(frozen=True, slots=True)
class FittedLora:
    """What came of one LoRA: its file, optimizer steps, and the running mean of the loss."""

    path: Path
    steps: int
    loss: float


def pick_bundled(names: Sequence[str]) -> tuple[BundledLora, ...]:
    """The bundled LoRAs with these names; all of them if none is named.

    Raises:
        TrainingError: a name is not that of a bundled LoRA.
    """
    known = {lora.name: lora for lora in BUNDLED}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise TrainingError(f"no bundled LoRA is called {unknown[0]!r}: there are {', '.join(known)}")
    return tuple(known[name] for name in names) or BUNDLED


def fit_bundled(
    lora: BundledLora, base: BaseModel, icons: Icons, plan: BundlePlan, report: ProgressReport
) -> FittedLora:
    """Paint pictures, fit, and write `NAME.safetensors`, `NAME.json` and `NAME.webp` into `plan.out`.

    Raises:
        TrainingError: the file is larger than a bundled one may be.
    """
    vae = AutoencoderKL.from_pretrained(base.folder.path / "vae").float().to(base.device).eval()
    painter = Painter(base, base.load("transformer"), vae, icons, lora.look, Random(lora.name))
    examples = []
    for number, (grid, count) in enumerate(CANVASES):
        report(TrainingProgress(f"{lora.name}: painting", number / len(CANVASES)))
        canvas = choose_pictures(painter, grid, max(1, round(plan.share * count)))
        examples.append(record_examples(painter, canvas))
    path = plan.out / f"{lora.name}.safetensors"
    blocks = LastBlocks(painter.transformer, lora.rank)
    if plan.again:
        blocks.write_factors(load_file(path))

    def fitting(progress: float, message: str) -> None:
        report(TrainingProgress(f"{lora.name}: fitting", progress, message))

    steps, loss = fit_factors(blocks, pool_tokens(examples), plan.budget, plan.rate, fitting)
    write_lora(path, blocks.read_factors(), LoraOrigin(lora.trigger, base.folder.name, base.sha256, lora.rank, steps))
    publish(lora, path, base)
    return FittedLora(path, steps, loss)


def publish(lora: BundledLora, file: Path, base: BaseModel) -> None:
    """Write the card and the preview beside the file.

    Raises:
        TrainingError: the file is larger than a bundled one may be.
    """
    if (size := file.stat().st_size) > MAX_BYTES:
        raise TrainingError(f"{lora.name} has {size:,} bytes; a bundled LoRA may have {MAX_BYTES:,}")
    card = json.dumps(make_card(lora, base), indent=2) + "\n"
    replace_file(file.with_suffix(".json"), card.encode())
    replace_file(file.with_suffix(".webp"), draw_preview(lora, file, base))


def make_card(lora: BundledLora, base: BaseModel) -> dict[str, Any]:
    """What people should know of a bundled LoRA, as JSON."""
    return {
        "name": lora.name,
        "description": lora.description,
        "trigger_words": [lora.trigger],
        "aliases": list(lora.aliases),
        "licence": _LICENCE,
        "base_model": base.folder.name,
        "base_model_sha256": base.sha256,
        "rank": lora.rank,
        "preview": f"{lora.name}.webp",
        "sources": list_packages(),
    }


def draw_preview(lora: BundledLora, file: Path, base: BaseModel) -> bytes:
    """Four pictures in one square WebP, drawn with the LoRA at scale 1.

    Raises:
        TrainingError: even at the lowest quality it is larger than 30,000 bytes.
    """
    transformer, _ = install_file(base, file)
    prompts = [f"{prompt}, {lora.trigger}" for prompt in PREVIEW_PROMPTS]
    sheet = make_sheet(build_sampler(prompts, base, "1").draw(transformer), columns=2)
    small = sheet.resize((_PREVIEW_SIDE, _PREVIEW_SIDE), Image.Resampling.LANCZOS)
    return compress_webp(small, MAX_PREVIEW_BYTES, PREVIEW_QUALITIES)
