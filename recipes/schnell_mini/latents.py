"""Latents of every icon on several canvases, encoded once: all stages after the autoencoder read these."""

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from schnell_mini.captions import COLOURS
from schnell_mini.pictures import ICON_SHARE, Icons, render_icons

PIXELS_PER_LATENT = 8


@dataclass(frozen=True)
class Encoded:
    """One view of every icon: latents `[N, 16, S/8, S/8]` (half, shifted and scaled), numbers of colours `[N]`."""

    latents: Tensor
    colours: Tensor

    def to(self, device: torch.device) -> "Encoded":
        """The same with its latents on a device."""
        return replace(self, latents=self.latents.to(device))


@dataclass(frozen=True)
class View:
    """What to encode: a square canvas in pixels, and the share of icons on white."""

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


def icon_size(canvas: int) -> int:
    """The side in pixels of an icon on a square canvas, even so that it lies in the middle."""
    return 2 * round(canvas * ICON_SHARE / 2)


def background_rgb() -> Tensor:
    """The background colours as `[C, 3]` in 0..1."""
    return torch.tensor(list(COLOURS.values()))


def draw_colours(rng: Random, count: int, white: float) -> Tensor:
    """A random colour's number for each icon; a share `white` of them get number 0, which is white."""
    others = len(COLOURS) - 1
    picks = [0 if rng.random() < white else 1 + rng.randrange(others) for _ in range(count)]
    return torch.tensor(picks)


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures `[B, 3, H, W]` in -1..1 as the VAE's mean latents, shifted and scaled as FLUX does, in float32."""
    pictures = pictures.to(vae.device, vae.dtype, memory_format=torch.channels_last)
    shift, scale = float(vae.config["shift_factor"]), float(vae.config["scaling_factor"])
    latents: Tensor = (vae.encode(pictures).latent_dist.mean.float() - shift) * scale
    return latents


def encode_view(vae: AutoencoderKL, icons: Icons, view: View, seed: int, batch: int = 16) -> Encoded:
    """Encode one view of all icons."""
    colours = draw_colours(Random(seed), len(icons), view.white)
    size, parts = icon_size(view.canvas), []
    rgb = background_rgb().to(icons.pictures.device)
    vae.to(memory_format=torch.channels_last)
    for start in range(0, len(icons), batch):
        chosen = colours[start : start + batch].to(rgb.device)
        pixels = render_icons(icons.pictures[start : start + batch], rgb[chosen], size, view.canvas)
        parts.append(encode_pictures(vae, pixels).half().cpu())
    return Encoded(torch.cat(parts), colours)


def save_encoded(encoded: Encoded, path: Path) -> None:
    """Write a view so that a broken-off run never leaves half a file."""
    fresh = path.with_suffix(".part")
    torch.save((encoded.latents, encoded.colours), fresh)
    fresh.replace(path)


def load_encoded(path: Path) -> Encoded:
    """Read a view written by `save_encoded`."""
    return Encoded(*torch.load(path, weights_only=True))


def place_on_canvas(latents: Tensor, height: int, width: int, down: int = 0, right: int = 0) -> Tensor:
    """Put square latents `[N, C, S, S]` on a canvas of `height` x `width` latents, moved off its centre.

    The canvas's edge looks like the square's: its outermost rows and columns, which a convolution sees differently
    from those inside, stay outermost. The plain background between them and the object is repeated.
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
