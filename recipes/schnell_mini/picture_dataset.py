"""Batches of noise and clean latents to train on, with icons placed as the noise says."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from schnell.engine.denoise import pack_latents
from schnell_mini.appearance_codes import VIEW_OF_SIDE
from schnell_mini.latents import Encoded
from schnell_mini.layout import TOKEN_CHANNELS
from schnell_mini.placement import SMALLEST_MOVED, Grid, align_noise, find_noise_directions, place_views

COLOURED_SHARE = 0.5
MOVED_VIEWS = ("white", "colour", "wide")


@dataclass(frozen=True)
class PictureBatch:
    """Noise and clean tokens `[B, T, 64]`, placements `[B, 2]`, numbers of icons and background colours `[B]`."""

    noise: Tensor
    clean: Tensor
    shifts: Tensor
    icons: Tensor
    colours: Tensor


@dataclass(frozen=True)
class PictureDataset:
    """The encoded views by name (one or more colourings of each), and the noise directions that decide placement."""

    views: Mapping[str, tuple[Encoded, ...]]
    directions: Tensor

    def sample(self, rng: Random, grid: Grid, count: int) -> PictureBatch:
        """Random icons in random placements on one canvas, each with noise that stands for its placement."""
        name = VIEW_OF_SIDE[grid.side]
        view = rng.choice(self.views["colour" if name == "white" and rng.random() < COLOURED_SHARE else name])
        icons = torch.tensor([rng.randrange(len(view.latents)) for _ in range(count)])
        shifts = torch.zeros(count, 2, dtype=torch.long)
        if grid.side >= SMALLEST_MOVED:
            shifts = torch.tensor([[rng.randrange(2), rng.randrange(2)] for _ in range(count)])
        device = view.latents.device
        noise = align_noise(torch.randn(count, grid.tokens, TOKEN_CHANNELS, device=device), self.directions, shifts)
        clean = pack_latents(place_views(view.latents[icons.to(device)].float(), grid, shifts))
        return PictureBatch(noise, clean, shifts, icons, view.colours[icons])


def build_picture_dataset(
    views: Mapping[str, tuple[Encoded, ...]], device: torch.device, directions: Tensor | None = None
) -> PictureDataset:
    """The dataset of these views on a device, with a finished model's `directions` `[64, 2]`, or the best ones."""
    if directions is None:
        directions = find_noise_directions([views[name][0] for name in MOVED_VIEWS])
    kept = {name: tuple(view.to(device) for view in same) for name, same in views.items()}
    return PictureDataset(kept, directions.to(device))
