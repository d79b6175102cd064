"""Icon pictures with premultiplied alpha: load, resize, turn, and lay on a background."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from schnell_mini.captions import Entry

SIDE = 256
FLAGS_GROUP = 9


@dataclass(frozen=True)
class Icons:
    """Pictures `[N, 4, 256, 256]` (uint8, premultiplied) and one entry of text each."""

    pictures: Tensor
    entries: tuple[Entry, ...]

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(frozen=True)
class Pose:
    """How an icon lies on its canvas: size in pixels and tilt in degrees."""

    size: int
    tilt: float = 0.0


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


def turn(pictures: Tensor, degrees: float) -> Tensor:
    """Rotate premultiplied floats `[N, 4, H, W]` about their centre."""
    if degrees == 0:
        return pictures
    angle = torch.tensor(degrees * torch.pi / 180)
    cos, sin = torch.cos(angle), torch.sin(angle)
    zero = torch.zeros(())
    matrix = torch.stack([torch.stack([cos, -sin, zero]), torch.stack([sin, cos, zero])])
    grid = functional.affine_grid(matrix[None].expand(len(pictures), 2, 3), list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, align_corners=False)


def lay(pictures: Tensor, backgrounds: Tensor, height: int, width: int) -> Tensor:
    """Centre premultiplied `[N, 4, S, S]` on plain `[N, 3]` colours: `[N, 3, height, width]`."""
    size = pictures.shape[-1]
    canvas = backgrounds[:, :, None, None].repeat(1, 1, height, width)
    top, left = (height - size) // 2, (width - size) // 2
    window = canvas[:, :, top : top + size, left : left + size]
    window.mul_(1 - pictures[:, 3:]).add_(pictures[:, :3])
    return canvas


def compose(icons: Tensor, backgrounds: Tensor, pose: Pose, canvas: int) -> Tensor:
    """Uint8 icons `[N, 4, 256, 256]` in a pose on plain colours: `[N, 3, canvas, canvas]` in -1..1."""
    posed = turn(resize(icons.float() / 255, pose.size), pose.tilt)
    return lay(posed, backgrounds, canvas, canvas) * 2 - 1


def read_entries(emojibase: Path) -> dict[str, Entry]:
    """Names and keywords by code points, without flags and parts of sequences."""
    rows = json.loads((emojibase / "en/data.json").read_text())
    return {
        (key := hex_key(row["hexcode"])): Entry(
            row["label"].lower(), tuple(tag.lower() for tag in row.get("tags", ())), key=key
        )
        for row in rows
        if row.get("group") not in (None, FLAGS_GROUP)
    }


def load_icon(path: Path) -> np.ndarray:
    """One icon as premultiplied bytes `[4, 256, 256]`."""
    values = torch.from_numpy(premultiply(Image.open(path))).permute(2, 0, 1)[None]
    return np.asarray((resize(values, SIDE)[0] * 255).round().to(torch.uint8))


def read_icons(fluent: Path, emojibase: Path) -> Icons:
    """Every 3D icon that has a name; skin-tone variants have none and stay out."""
    known = read_entries(emojibase)
    files = [f for f in sorted((fluent / "assets").glob("*.webp")) if hex_key(f.stem) in known]
    pictures = np.stack([load_icon(file) for file in files])
    return Icons(torch.from_numpy(pictures), tuple(known[hex_key(f.stem)] for f in files))
