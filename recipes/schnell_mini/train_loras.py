"""Training the bundled LoRAs: file, card and preview of each, ready to be shipped beside the embedded model."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from schnell.errors import TrainingError
from schnell.training.low_rank import BaseModel, install_low_rank, read_lora_file, write_factors
from schnell.training.plan import Budget, ProgressReport, TrainingPlan
from schnell.training.samples import build_sampler, make_sheet
from schnell.training.state import replace_file
from schnell.training.trainer import TrainedLora, TrainingRequest, train_lora
from schnell_mini.lora_icons import list_packages
from schnell_mini.lora_styles import BUNDLED, BundledLora, write_style_pictures

RANK: Final = 16
LEARNING_RATE: Final = 0.003
AREAS: Final = (("0.25", 1.0),)  # at 1 MP the noise moves objects off the middle, where the pictures have them
MAX_BYTES: Final = 1_000_000
MAX_PREVIEW_BYTES: Final = 30_000
PREVIEW_PROMPTS: Final = ("red apple", "rocket", "cat face", "house")
_PREVIEW_SIDE: Final = 512
_LICENCE: Final = "Apache-2.0"


@dataclass(frozen=True, slots=True)
class BundlePlan:
    """Where the icons are fetched to and painted, where the results go, and how long each LoRA is trained."""

    work: Path
    out: Path
    budget: Budget
    pictures: int = 600
    resume: bool = False


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


def train_bundled(lora: BundledLora, base: BaseModel, plan: BundlePlan, report: ProgressReport) -> TrainedLora:
    """Paint the pictures, train, and write `NAME.safetensors`, `NAME.json` and `NAME.webp` into `plan.out`.

    Raises:
        TrainingDataError: the icons cannot be fetched.
        TrainingError: the training fails, or the file is larger than a bundled one may be.
    """
    pictures = plan.work / f"pictures-{plan.pictures}" / lora.name
    if not (pictures / ".complete").exists():
        write_style_pictures(lora, plan.pictures, plan.work / "packages", pictures, report)
        (pictures / ".complete").touch()
    request = TrainingRequest(
        images=pictures,
        out=plan.work / "trained" / f"{lora.name}.safetensors",
        plan=TrainingPlan(
            trigger=lora.trigger,
            rank=RANK,
            budget=plan.budget,
            megapixels=AREAS,
            batch_size=8,
            learning_rate=LEARNING_RATE,
        ),
        base=base,
        resume=plan.resume,
    )
    trained = train_lora(request, report)
    _publish(lora, trained, base, plan.out)
    return trained


def _publish(lora: BundledLora, trained: TrainedLora, base: BaseModel, out: Path) -> None:
    data = trained.path.read_bytes()
    if len(data) > MAX_BYTES:
        raise TrainingError(f"{lora.name} has {len(data):,} bytes; a bundled LoRA may have {MAX_BYTES:,}")
    replace_file(out / f"{lora.name}.safetensors", data)
    replace_file(out / f"{lora.name}.json", (json.dumps(make_card(lora, base), indent=2) + "\n").encode())
    replace_file(out / f"{lora.name}.webp", draw_preview(lora, trained.path, base))


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
        "rank": RANK,
        "preview": f"{lora.name}.webp",
        "sources": list_packages(),
    }


def draw_preview(lora: BundledLora, file: Path, base: BaseModel) -> bytes:
    """Four pictures in one square WebP of at most 30,000 bytes, drawn with the LoRA at scale 1."""
    transformer = base.load("transformer")
    layers = install_low_rank(transformer, RANK, seed=0, only=base.folder.lora_layers)
    write_factors(layers, read_lora_file(file))
    prompts = [f"{prompt}, {lora.trigger}" for prompt in PREVIEW_PROMPTS]
    sheet = make_sheet(build_sampler(prompts, base, "1").draw(transformer), columns=2)
    return compress_preview(sheet.resize((_PREVIEW_SIDE, _PREVIEW_SIDE), Image.Resampling.LANCZOS))


def compress_preview(picture: Image.Image) -> bytes:
    """WebP in the best quality that keeps within 30,000 bytes.

    Raises:
        TrainingError: even the lowest quality is larger.
    """
    for quality in (85, 70, 55, 40, 25, 10):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= MAX_PREVIEW_BYTES:
            return buffer.getvalue()
    raise TrainingError("the preview is larger than 30,000 bytes")
