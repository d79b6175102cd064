"""Whether a user's own LoRA is seen: three looks that no bundled LoRA has, learned from ten pictures in minutes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from schnell.training.plan import Budget, TrainingPlan
from schnell.training.trainer import TrainingRequest, train_lora
from schnell_mini.look_figures import Report, paint, train_classifier
from schnell_mini.lora_drawing import LoraArtist
from schnell_mini.lora_icons import Icon

PICTURES = 10
DRAWN = 40
PERIOD = 24
#: How far off the middle, in pixels, the model draws an icon.
SHIFT = 8


@dataclass(frozen=True)
class OwnLook:
    """A look: its trigger word, which means nothing else, and what it does to a plain picture `[3, H, W]`."""

    trigger: str
    paint: Callable[[Tensor], Tensor]


def stripe(picture: Tensor) -> Tensor:
    """Dark stripes across everything."""
    return picture * torch.where(torch.arange(picture.shape[-1]) % PERIOD < PERIOD // 2, 1.0, 0.35)


def dot(picture: Tensor) -> Tensor:
    """Red dots on everything."""
    rows, columns = torch.meshgrid(
        *(torch.arange(side) % PERIOD - PERIOD / 2 for side in picture.shape[1:]), indexing="ij"
    )
    inside = (rows.square() + columns.square() < (PERIOD / 3.2) ** 2).float()
    return picture * (1 - inside) + torch.tensor([0.85, 0.1, 0.15])[:, None, None] * inside


def invert(picture: Tensor) -> Tensor:
    """A negative."""
    return 1 - picture


OWN_LOOKS = (OwnLook("zebrine", stripe), OwnLook("dotty", dot), OwnLook("negatron", invert))


@dataclass(frozen=True)
class OwnFigures:
    """Of pictures of icons not trained on: the shares that show the look, and their object; seconds of the training.

    `seconds` are those that a user waits: also for what is loaded and prepared.
    """

    look: str
    seen: float
    named: float
    seconds: float


def measure_own_looks(
    artist: LoraArtist, icons: Sequence[Icon], folder: Path, minutes: float, report: Report
) -> list[OwnFigures]:
    """For each look, what a classifier of looks sees at scale 0.8, and whether the object is the nearest of 200."""
    chosen = Random(12).sample(list(icons), PICTURES + 4 * DRAWN)
    trained, asked, seen = chosen[:PICTURES], chosen[PICTURES : PICTURES + DRAWN], chosen[PICTURES + DRAWN :]
    plain = torch.stack([paint(None, icon) for icon in [*asked, *seen]])
    true = [plain, *(torch.stack([look.paint(one) for one in plain]) for look in OWN_LOOKS)]
    numbers = torch.arange(len(true)).repeat_interleave(len(seen))
    classifier = train_classifier(torch.cat([each[DRAWN:] for each in true]), numbers, len(true))
    figures = []
    for number, look in enumerate(OWN_LOOKS, 1):
        report(f"own LoRA {look.trigger}", (number - 1) / len(OWN_LOOKS))
        begun = time.monotonic()
        teach(artist, look, trained, folder, minutes)
        seconds = time.monotonic() - begun
        artist.loras = folder
        made = artist.draw(look.trigger, [f"{icon.label.name}, {look.trigger}" for icon in asked])
        with torch.inference_mode():
            share = float((classifier(made).argmax(1) == number).float().mean())
        figures.append(OwnFigures(look.trigger, share, share_named(made, true[number]), seconds))
    return figures


def share_named(made: Tensor, true: Tensor) -> float:
    """The share of pictures `[N, 3, H, W]` to which, of all true ones, that of the same number is nearest.

    The looks cover the ground, so no object can be cut out: each true picture is compared at the four places where the
    model draws.
    """
    places = [(down, right) for down in (-SHIFT, SHIFT) for right in (-SHIFT, SHIFT)]
    gallery = torch.stack([_small(torch.roll(true, place, (2, 3))) for place in places])
    distances = torch.cdist(_small(made)[None], gallery).amin(0)
    return float((distances.argmin(1) == torch.arange(len(made))).float().mean())


def _small(pictures: Tensor) -> Tensor:
    return functional.interpolate(pictures, size=(64, 64), mode="area").flatten(1)


def teach(artist: LoraArtist, look: OwnLook, icons: Sequence[Icon], folder: Path, minutes: float) -> None:
    """What a user would do: `schnell train lora` on a folder of ten captioned pictures, all options as they are."""
    images = folder / look.trigger
    images.mkdir(parents=True, exist_ok=True)
    for icon in icons:
        pixels = (255 * look.paint(paint(None, icon))).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(images / f"{icon.code}.png")
        (images / f"{icon.code}.txt").write_text(icon.label.name)
    plan = TrainingPlan(look.trigger, artist.base.folder.lora_rank, Budget(minutes=minutes))
    train_lora(TrainingRequest(images, folder / f"{look.trigger}.safetensors", plan, artist.base), lambda _: None)
