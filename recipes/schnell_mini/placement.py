"""Where the object lies on its canvas: a rule that the transformer can follow from the noise alone.

Few steps cannot choose between placements: one step from pure noise draws the mean of all that are possible. So the
noise decides. Training pairs each noise with the placement that it stands for, a coupling as in Pooladian et al. 2023
(arXiv:2304.14772), and a seed keeps its placement through all steps. What decides is the noise's mean along two
directions of a token's channels in which pictures have next to no mean themselves.

A "view" is an icon on a square canvas of 16, 12, 8 or 6 tokens a side. Other canvases show the largest view that fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schnell.engine.denoise import pack_latents
from schnell.spec import Size
from schnell_mini.latents import Encoded, place_on_canvas

VIEW_SIDES = (16, 12, 8, 6)
LARGEST_SIDE = 24
SMALLEST_MOVED = 12
MARGIN = 4
POSITION_CODES = 2 * VIEW_SIDES[0] + len(VIEW_SIDES)


@dataclass(frozen=True)
class Grid:
    """A canvas in tokens, and the square view that it shows."""

    height: int
    width: int

    @property
    def size(self) -> Size:
        """The same as the engine writes it."""
        return Size(self.width, self.height)

    @property
    def side(self) -> int:
        """The view's side in tokens."""
        return next((side for side in VIEW_SIDES if side <= min(self.height, self.width)), VIEW_SIDES[-1])

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of the view's first token when the object is not moved."""
        return (self.height - self.side) // 2, (self.width - self.side) // 2

    @property
    def tokens(self) -> int:
        """How many tokens the canvas has."""
        return self.height * self.width


def find_noise_directions(views: Sequence[Encoded]) -> Tensor:
    """Two orthonormal directions of a token's channels `[64, 2]` along which the views' means over tokens are least."""
    means = torch.cat([pack_latents(view.latents.float()).mean(1) for view in views])
    directions: Tensor = torch.linalg.eigh(means.T @ means / len(means)).eigenvectors
    return directions[:, :2].contiguous()


def align_noise(noise: Tensor, directions: Tensor, shifts: Tensor) -> Tensor:
    """Noise `[B, T, 64]` whose means along `directions` `[64, 2]` stand for `shifts` `[B, 2]` (0 or 1 token each).

    A positive mean along the first direction stands for one token down, along the second for one token right. Where a
    mean has the wrong sign, its sign is changed; that is as likely as the noise before.
    """
    means = noise.mean(1) @ directions
    wanted = means.abs() * (2 * shifts.to(means) - 1)
    return noise + ((wanted - means) @ directions.T)[:, None]


def find_view_positions(grid: Grid, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's position within the view, counted row by row, and whether it lies inside: `[B, T]` both.

    A token outside of the view has the nearest position inside.
    """
    top, left = grid.corner
    rows = torch.arange(grid.height)[None, :, None] - top - shifts[:, 0, None, None]
    columns = torch.arange(grid.width)[None, None] - left - shifts[:, 1, None, None]
    inside = (rows >= 0) & (rows < grid.side) & (columns >= 0) & (columns < grid.side)
    positions = rows.clamp(0, grid.side - 1) * grid.side + columns.clamp(0, grid.side - 1)
    return positions.flatten(1), inside.flatten(1)


def place_unmoved(latents: Tensor, side: int) -> Tensor:
    """A view `[N, 16, 2S, 2S]` as it lies where the noise does not move it: half a token up and left."""
    grid = Grid(side, side)
    return place_at(latents, grid, (-half_token(grid), -half_token(grid)))


def place_views(latents: Tensor, grid: Grid, shifts: Tensor) -> Tensor:
    """Square views `[N, 16, 2S, 2S]` on a canvas, moved by `shifts` `[N, 2]` in tokens: `[N, 16, 2H, 2W]`."""
    half, (top, left) = half_token(grid), grid.corner
    placed = latents.new_empty(len(latents), latents.shape[1], 2 * grid.height, 2 * grid.width)
    for down, right in {(down, right) for down, right in shifts.tolist()}:
        chosen = (shifts == torch.tensor([down, right])).all(1).nonzero()[:, 0].to(latents.device)
        corner = (2 * (top + down) - half, 2 * (left + right) - half)
        placed[chosen] = place_at(latents[chosen], grid, corner)
    return placed


def half_token(grid: Grid) -> int:
    """By how many latents a view lies up and left of its tokens, so that its placements are equally far off centre."""
    return 1 if grid.side >= SMALLEST_MOVED else 0


def place_at(latents: Tensor, grid: Grid, corner: tuple[int, int]) -> Tensor:
    """Views `[N, 16, S, S]` with their first latent at `corner`; what leaves the canvas (plain rim) is cut off."""
    side, height, width = latents.shape[-1], 2 * grid.height + 2 * MARGIN, 2 * grid.width + 2 * MARGIN
    down = corner[0] + MARGIN - (height - side) // 2
    right = corner[1] + MARGIN - (width - side) // 2
    return place_on_canvas(latents, height, width, down, right)[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
