"""The contact sheet of the bundled LoRAs: fixed prompts without a LoRA and with each of them, always the same seeds."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from schnell_mini.lora_drawing import PLAIN, LoraArtist
from schnell_mini.lora_styles import BUNDLED
from schnell_mini.pictures import compress_webp

PROMPTS = (
    "red apple",
    "rocket",
    "cat face",
    "house",
    "automobile",
    "sunflower",
    "dog face",
    "pizza",
    "snowman",
    "evergreen tree",
    "guitar",
    "teapot",
    "whale",
    "bicycle",
    "hamburger",
    "crown",
    "key",
    "panda",
    "red apple on a yellow background",
    "sailboat on a sky blue background",
    "owl on a pink background",
    "umbrella on a purple background",
    "neon city at night",
    "grinning face",
)
SIDE = 96
GAP = 2
MAX_BYTES = 250_000
QUALITIES = (90, 80, 65, 50, 35, 20)

Report = Callable[[str, float], None]


def draw_contact_sheet(artist: LoraArtist, report: Report) -> bytes:
    """A WebP with a row for each of the prompts' pictures: without a LoRA, then as every LoRA draws them at 0.8.

    Raises:
        TrainingError: even at the lowest quality it is larger than 250,000 bytes.
    """
    rows = []
    for number, name in enumerate([PLAIN, *(lora.name for lora in BUNDLED)]):
        report(f"drawing {name}", number / (1 + len(BUNDLED)))
        trigger = "" if name == PLAIN else f", {BUNDLED[number - 1].trigger}"
        rows.append(artist.draw(name, [prompt + trigger for prompt in PROMPTS]))
    return compress_webp(join_pictures(torch.stack(rows)), MAX_BYTES, QUALITIES)


def join_pictures(pictures: Tensor) -> Image.Image:
    """Pictures `[R, C, 3, S, S]` in 0..1 as one, in rows and columns with white gaps."""
    count, columns = pictures.shape[:2]
    small = functional.interpolate(pictures.flatten(0, 1), size=(SIDE, SIDE), mode="area")
    framed = functional.pad(small, (0, GAP, 0, GAP), value=1.0).view(count, columns, 3, SIDE + GAP, SIDE + GAP)
    joined = framed.permute(0, 3, 1, 4, 2).reshape(count * (SIDE + GAP), columns * (SIDE + GAP), 3)
    return Image.fromarray((255 * joined[:-GAP, :-GAP]).round().byte().numpy())
