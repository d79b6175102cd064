"""Pictures on canvases as the noise places them."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from schnell_mini.appearance_codes import VIEW_OF_SIDE
from schnell_mini.latents import Encoded, pack
from schnell_mini.layout import CHANNELS
from schnell_mini.placement import MOVING, Grid, find_directions, move, settle

COLOURED = 0.5
PLACED = ("white", "colour", "wide")


@dataclass(frozen=True)
class Scene:
    """Noise and clean tokens `[B, T, 64]`, how the noise moved them `[B, 2]`, and what they show `[B]`."""

    noise: Tensor
    clean: Tensor
    shifts: Tensor
    icons: Tensor
    colours: Tensor


@dataclass(frozen=True)
class Scenes:
    """The encoded views (one or more of each kind), and the directions along which noise is read."""

    views: Mapping[str, tuple[Encoded, ...]]
    directions: Tensor

    def stage(self, rng: Random, grid: Grid, count: int) -> Scene:
        """Random icons where random noise puts them."""
        name = VIEW_OF_SIDE[grid.side]
        view = rng.choice(self.views["colour" if name == "white" and rng.random() < COLOURED else name])
        icons = torch.tensor([rng.randrange(len(view.latents)) for _ in range(count)])
        shifts = torch.zeros(count, 2, dtype=torch.long)
        if grid.side >= MOVING:
            shifts = torch.tensor([[rng.randrange(2), rng.randrange(2)] for _ in range(count)])
        device = view.latents.device
        noise = settle(torch.randn(count, grid.tokens, CHANNELS, device=device), self.directions, shifts)
        clean = pack(move(view.latents[icons.to(device)].float(), grid, shifts))
        return Scene(noise, clean, shifts, icons, view.colours[icons])


def open_scenes(views: Mapping[str, tuple[Encoded, ...]], device: torch.device) -> Scenes:
    """Scenes over encoded views, kept where they are used."""
    directions = find_directions([views[name][0] for name in PLACED])
    kept = {name: tuple(view.to(device) for view in same) for name, same in views.items()}
    return Scenes(kept, directions.to(device))
