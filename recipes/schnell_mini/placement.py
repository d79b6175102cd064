"""Where the object lies on its canvas: a rule that the transformer can follow from the noise alone.

Few steps cannot choose between placements: one step from pure noise draws the mean of all that are left open. So the
noise decides. Training pairs each noise with the placement that the noise itself names, a coupling as in Pooladian
et al. 2023 (arXiv:2304.14772), and a seed keeps its placement through all steps. The noise is read as its mean along
two directions of a token's channels in which pictures have next to no mean themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schnell_mini.latents import Encoded, pack, place

SIDES = (16, 12, 8, 6)
LARGEST = 24
MOVING = 12
MARGIN = 4
CODE = 2 * SIDES[0] + len(SIDES)


@dataclass(frozen=True)
class Grid:
    """A canvas in tokens."""

    height: int
    width: int

    @property
    def side(self) -> int:
        """The side in tokens of the square view that the canvas shows."""
        return next((side for side in SIDES if side <= min(self.height, self.width)), SIDES[-1])

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of the view's first token when the object is not moved."""
        return (self.height - self.side) // 2, (self.width - self.side) // 2

    @property
    def tokens(self) -> int:
        """How many tokens the canvas has."""
        return self.height * self.width


def find_directions(views: Sequence[Encoded]) -> Tensor:
    """Two directions of a token's channels `[64, 2]` along which the views' pictures have the least mean."""
    means = torch.cat([pack(view.latents.float()).mean(1) for view in views])
    directions: Tensor = torch.linalg.eigh(means.T @ means / len(means)).eigenvectors
    return directions[:, :2].contiguous()


def settle(noise: Tensor, directions: Tensor, shifts: Tensor) -> Tensor:
    """The noise `[B, T, 64]`, mirrored along the directions `[64, 2]` where it does not say `shifts` `[B, 2]`.

    Noise says 1 along a direction, a token further down or right, where its mean is positive.
    """
    means = noise.mean(1) @ directions
    wanted = means.abs() * (2 * shifts.to(means) - 1)
    return noise + ((wanted - means) @ directions.T)[:, None]


def find_places(grid: Grid, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's place within the view, counted row by row, and whether it lies inside: `[B, T]` both.

    A token outside of the view has the nearest place inside.
    """
    top, left = grid.corner
    rows = torch.arange(grid.height)[None, :, None] - top - shifts[:, 0, None, None]
    columns = torch.arange(grid.width)[None, None] - left - shifts[:, 1, None, None]
    inside = (rows >= 0) & (rows < grid.side) & (columns >= 0) & (columns < grid.side)
    places = rows.clamp(0, grid.side - 1) * grid.side + columns.clamp(0, grid.side - 1)
    return places.flatten(1), inside.flatten(1)


def first_corner(latents: Tensor, side: int) -> Tensor:
    """The view `[N, 16, 2S, 2S]` as it lies where the noise does not move it: half a token up and left."""
    grid = Grid(side, side)
    return lay_at(latents, grid, (-half_token(grid), -half_token(grid)))


def move(latents: Tensor, grid: Grid, shifts: Tensor) -> Tensor:
    """Square views `[N, 16, 2S, 2S]` on a canvas, moved by `shifts` `[N, 2]`: `[N, 16, 2H, 2W]`."""
    half, (top, left) = half_token(grid), grid.corner
    moved = latents.new_empty(len(latents), latents.shape[1], 2 * grid.height, 2 * grid.width)
    for down, right in {(down, right) for down, right in shifts.tolist()}:
        chosen = (shifts == torch.tensor([down, right])).all(1).nonzero()[:, 0].to(latents.device)
        corner = (2 * (top + down) - half, 2 * (left + right) - half)
        moved[chosen] = lay_at(latents[chosen], grid, corner)
    return moved


def half_token(grid: Grid) -> int:
    """By how many latents a view lies up and left of its tokens, so that its places are equally far off the middle."""
    return 1 if grid.side >= MOVING else 0


def lay_at(latents: Tensor, grid: Grid, corner: tuple[int, int]) -> Tensor:
    """Views `[N, 16, S, S]` with their first latent at `corner`; what leaves the canvas (plain rim) is cut off."""
    side, height, width = latents.shape[-1], 2 * grid.height + 2 * MARGIN, 2 * grid.width + 2 * MARGIN
    down = corner[0] + MARGIN - (height - side) // 2
    right = corner[1] + MARGIN - (width - side) // 2
    return place(latents, height, width, down, right)[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
