"""Latents of posed icons, made once: every later stage reads these, never pixels."""

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from schnell_mini.captions import COLOURS
from schnell_mini.pictures import Icons, Pose, compose

FACTOR = 8
FILL = 0.8125


@dataclass(frozen=True)
class Encoded:
    """One view of every icon: latents `[N, 16, S/8, S/8]` (half, scaled), colour numbers `[N]`, the pose."""

    latents: Tensor
    colours: Tensor
    canvas: int
    pose: Pose

    def to(self, device: torch.device) -> "Encoded":
        """The same with its latents on a device."""
        return replace(self, latents=self.latents.to(device))


@dataclass(frozen=True)
class View:
    """What to encode: a square canvas in pixels, and how many icons stay on white."""

    name: str
    canvas: int
    white: float


VIEWS = (
    View("white", 256, 1.0),
    View("small", 128, 0.5),
    View("colour", 256, 0.0),
    View("wide", 192, 0.5),
    View("tiny", 96, 0.5),
)


def centred_pose(canvas: int) -> Pose:
    """An upright icon that leaves a rim on a square canvas of so many pixels."""
    return Pose(2 * round(canvas * FILL / 2))


def palette() -> Tensor:
    """The background colours as `[C, 3]` in 0..1."""
    return torch.tensor(list(COLOURS.values()))


def draw_colours(rng: Random, count: int, white: float) -> Tensor:
    """A colour number for each icon; `white` of them are number 0."""
    others = len(COLOURS) - 1
    picks = [0 if rng.random() < white else 1 + rng.randrange(others) for _ in range(count)]
    return torch.tensor(picks)


@torch.no_grad()
def encode_view(vae: AutoencoderKL, icons: Icons, view: View, seed: int, batch: int = 16) -> Encoded:
    """Encode one view of all icons with the VAE's mean, shifted and scaled as FLUX does."""
    colours = draw_colours(Random(seed), len(icons), view.white)
    pose = centred_pose(view.canvas)
    rgb, parts = palette().to(icons.pictures.device), []
    shift, scale = float(vae.config["shift_factor"]), float(vae.config["scaling_factor"])
    vae.to(memory_format=torch.channels_last)
    for start in range(0, len(icons), batch):
        chosen = colours[start : start + batch].to(rgb.device)
        pixels = compose(icons.pictures[start : start + batch], rgb[chosen], pose, view.canvas)
        laid = pixels.to(vae.device, vae.dtype, memory_format=torch.channels_last)
        mean = vae.encode(laid).latent_dist.mean
        parts.append(((mean.float() - shift) * scale).half().cpu())
    return Encoded(torch.cat(parts), colours, view.canvas, pose)


def save_encoded(encoded: Encoded, path: Path) -> None:
    """Write a view so that a broken-off run never leaves half a file."""
    fresh = path.with_suffix(".part")
    pose = (encoded.pose.size, encoded.pose.tilt)
    torch.save((encoded.latents, encoded.colours, encoded.canvas, pose), fresh)
    fresh.replace(path)


def load_encoded(path: Path) -> Encoded:
    """Read a view written by `save_encoded`."""
    latents, colours, canvas, pose = torch.load(path, weights_only=True)
    return Encoded(latents, colours, canvas, Pose(*pose))


def place(latents: Tensor, height: int, width: int, down: int = 0, right: int = 0) -> Tensor:
    """Put square latents `[N, C, S, S]` on a canvas of `height` x `width` latents, moved off its centre.

    The plain rim around the object is stretched, the outermost rows and columns stay at the edge.
    """
    side = latents.shape[-1]
    if (height, width, down, right) == (side, side, 0, 0):
        return latents
    inner = latents[..., 2:-2, 2:-2]
    top, left = (height - side) // 2 + down, (width - side) // 2 + right
    pads = (left + 1, width - side - left + 1, top + 1, height - side - top + 1)
    core = functional.pad(inner, pads, mode="replicate")
    rows = functional.pad(latents[..., :1, 2:-2], (pads[0], pads[1], 0, 0), mode="replicate")
    foot = functional.pad(latents[..., -1:, 2:-2], (pads[0], pads[1], 0, 0), mode="replicate")
    tall = torch.cat([rows, core, foot], -2)
    first = functional.pad(latents[..., 2:-2, :1], (0, 0, pads[2], pads[3]), mode="replicate")
    last = functional.pad(latents[..., 2:-2, -1:], (0, 0, pads[2], pads[3]), mode="replicate")
    first = torch.cat([latents[..., :1, :1], first, latents[..., -1:, :1]], -2)
    last = torch.cat([latents[..., :1, -1:], last, latents[..., -1:, -1:]], -2)
    return torch.cat([first, tall, last], -1)


def pack(latents: Tensor) -> Tensor:
    """`[N, C, H, W]` to FLUX's tokens `[N, H/2 * W/2, 4C]`."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """FLUX's tokens back to `[N, C, height, width]` latents."""
    n, _, d = tokens.shape
    grid = tokens.view(n, height // 2, width // 2, d // 4, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(n, d // 4, height, width)
