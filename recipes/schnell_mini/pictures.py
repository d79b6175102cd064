"""Icon pictures with premultiplied alpha: load, resize, and composite on a plain background; WebP of what was drawn."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from schnell.errors import TrainingError
from schnell_mini.captions import IconLabel

ICON_SIDE = 256
#: The part of a canvas's side that an icon fills.
ICON_SHARE = 0.8125
FLAGS_GROUP = 9


@dataclass(frozen=True)
class Icons:
    """Pictures `[N, 4, 256, 256]` (uint8, premultiplied), each with its label."""

    pictures: Tensor
    labels: tuple[IconLabel, ...]

    def __len__(self) -> int:
        return len(self.labels)


def hex_key(name: str) -> str:
    """The code points of an emoji without the variation selector, as both data sets share them."""
    return "-".join(part for part in name.lower().split("-") if part != "fe0f")


def premultiply(picture: Image.Image) -> np.ndarray:
    """RGBA floats `[H, W, 4]` in 0..1 with colours multiplied by alpha."""
    values = np.asarray(picture.convert("RGBA")).astype(np.float32) / 255
    values[..., :3] *= values[..., 3:]
    return values


def resize(pictures: Tensor, size: int) -> Tensor:
    """Resize premultiplied floats `[N, 4, H, W]` to `size`, so that no edge picks up hidden colour."""
    if pictures.shape[-2:] == (size, size):
        return pictures
    out = functional.interpolate(pictures, size=(size, size), mode="bicubic", antialias=True)
    out = out.clamp(0, 1)
    return torch.cat([torch.minimum(out[:, :3], out[:, 3:]), out[:, 3:]], 1)


def composite(pictures: Tensor, backgrounds: Tensor, height: int, width: int) -> Tensor:
    """Centre premultiplied `[N, 4, S, S]` in 0..1 on plain colours `[N, 3]`: `[N, 3, height, width]`."""
    size = pictures.shape[-1]
    canvas = backgrounds[:, :, None, None].repeat(1, 1, height, width)
    top, left = (height - size) // 2, (width - size) // 2
    window = canvas[:, :, top : top + size, left : left + size]
    window.mul_(1 - pictures[:, 3:]).add_(pictures[:, :3])
    return canvas


def render_icons(icons: Tensor, backgrounds: Tensor, size: int, canvas: int) -> Tensor:
    """Uint8 icons `[N, 4, 256, 256]` at `size` pixels on plain colours: `[N, 3, canvas, canvas]` in -1..1."""
    return composite(resize(icons.float() / 255, size), backgrounds, canvas, canvas) * 2 - 1


def read_labels(emojibase: Path) -> dict[str, IconLabel]:
    """Labels by code points, without flags and without what is part of an emoji only."""
    rows = json.loads((emojibase / "en/data.json").read_text())
    return {
        (key := hex_key(row["hexcode"])): IconLabel(
            row["label"].lower(), tuple(tag.lower() for tag in row.get("tags", ())), key=key
        )
        for row in rows
        if row.get("group") not in (None, FLAGS_GROUP)
    }


def load_icon(path: Path) -> np.ndarray:
    """One icon as premultiplied bytes `[4, 256, 256]`."""
    values = torch.from_numpy(premultiply(Image.open(path))).permute(2, 0, 1)[None]
    return np.asarray((resize(values, ICON_SIDE)[0] * 255).round().to(torch.uint8))


def read_icons(fluent: Path, emojibase: Path) -> Icons:
    """Every 3D icon that has a name; skin-tone variants have none and stay out."""
    labels = read_labels(emojibase)
    files = [f for f in sorted((fluent / "assets").glob("*.webp")) if hex_key(f.stem) in labels]
    pictures = np.stack([load_icon(file) for file in files])
    return Icons(torch.from_numpy(pictures), tuple(labels[hex_key(f.stem)] for f in files))


def compress_webp(picture: Image.Image, most_bytes: int, qualities: Sequence[int]) -> bytes:
    """WebP in the first of these qualities, from the best down, that keeps within so many bytes.

    Raises:
        TrainingError: none does.
    """
    for quality in qualities:
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= most_bytes:
            return buffer.getvalue()
    raise TrainingError(f"the picture is larger than {most_bytes:,} bytes at any quality")


def draw_evenly(rng: Random, kinds: int, count: int) -> list[int]:
    """Random numbers below `kinds`, none of them once more than another while that can be."""
    rounds = (rng.sample(range(kinds), kinds) for _ in range(-(-count // kinds)))
    return [number for one in rounds for number in one][:count]
