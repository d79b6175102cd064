"""Pictures on canvases as the noise places them."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from torch import Tensor

from schnell.training.mini.latents import Encoded, pack
from schnell.training.mini.looks import VIEW_OF_SIDE
from schnell.training.mini.pose import Grid, find_directions, move, read_shifts

COLOURED = 0.4
PLACED = ("white", "colour", "wide")


@dataclass(frozen=True)
class Scene:
    """Clean tokens `[B, T, 64]`, how the noise moved them `[B, 2]`, and what they show."""

    clean: Tensor
    shifts: Tensor
    icons: list[int]
    colours: list[int]


@dataclass(frozen=True)
class Scenes:
    """The encoded views, and the directions along which noise is read."""

    views: Mapping[str, Encoded]
    directions: Tensor

    def stage(self, rng: Random, grid: Grid, noise: Tensor) -> Scene:
        """A random icon for each noise `[B, T, 64]`, where that noise puts it."""
        name = VIEW_OF_SIDE[grid.side]
        view = self.views["colour" if name == "white" and rng.random() < COLOURED else name]
        icons = [rng.randrange(len(view.latents)) for _ in noise]
        shifts = read_shifts(noise, self.directions, grid)
        clean = pack(move(view.latents[icons].float(), grid, shifts))
        return Scene(clean, shifts, icons, view.colours[icons].tolist())


def open_scenes(views: Mapping[str, Encoded]) -> Scenes:
    """Scenes over encoded views."""
    return Scenes(views, find_directions([views[name] for name in PLACED]))
