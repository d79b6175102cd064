"""Where a model's own drawing of a caption lies, as against the picture that the caption is of.

A picture is moved and made smaller until it explains the drawing best: until a linear map of its colours leaves the
least of the drawing's. So a negative or a blueprint finds its object as well as a photograph does (image
registration by least squares on intensities, as in Roche et al. 1998, "The correlation ratio").

All is counted in cells, half a token wide and high.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from schnell.spec import Size

#: Cells of a token's side.
CELLS: Final = 2
#: How far a picture is moved from the middle at most, in cells.
_FARTHEST: Final = 2
#: The least size that is tried, as a part of the largest that shows the picture whole.
_SMALLEST: Final = 0.84
#: Keeps the map finite where a drawing has one colour only.
_RIDGE: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Move:
    """How pictures are moved: to a part of their largest size, then right and down by cells."""

    part: float
    right: int = 0
    down: int = 0


@dataclass(frozen=True, slots=True)
class Framing:
    """How a picture lies on a canvas: its size, and its left and upper edge, in cells. Negative ones lie outside."""

    size: Size
    left: int
    top: int


def frame(picture: Size, canvas: Size, move: Move) -> Framing:
    """A picture of this size on a canvas: whole, in the middle, and then moved."""
    factor = move.part * min(canvas.width / picture.width, canvas.height / picture.height)
    size = Size(*(max(1, round(side * factor)) for side in picture))
    return Framing(size, (canvas.width - size.width) // 2 + move.right, (canvas.height - size.height) // 2 + move.down)


def lay(picture: Image.Image, framing: Framing, canvas: Size, cell: int) -> Tensor:
    """The picture on a canvas of so many cells, each `cell` pixels wide: (3, height, width) from -1 to 1.

    The first cell beside it shows its mirror image, which of all that could be there is most like the rest; what lies
    farther off repeats that.
    """
    size = (framing.size.width * cell, framing.size.height * cell)
    pixels = np.asarray(picture.resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
    return _spread(pixels / 127.5 - 1, framing, canvas, cell)


def _spread(pixels: NDArray[Any], framing: Framing, canvas: Size, cell: int) -> Tensor:
    rows = _continued(len(pixels), framing.top * cell, canvas.height * cell, cell)
    columns = _continued(pixels.shape[1], framing.left * cell, canvas.width * cell, cell)
    return torch.from_numpy(pixels[rows][:, columns]).permute(2, 0, 1).contiguous()


def _continued(length: int, start: int, canvas: int, cell: int) -> NDArray[Any]:
    at = np.clip(np.arange(canvas) - start, -cell, length - 1 + cell)
    at = np.where(at < 0, -1 - at, at)
    return np.clip(np.where(at < length, at, 2 * length - 1 - at), 0, length - 1)


def covered_tokens(framing: Framing, grid: Size) -> Tensor:
    """Which part of each token the picture covers: (tokens), 0 to 1, row by row."""
    rows = _covered(framing.top, framing.size.height, grid.height)
    columns = _covered(framing.left, framing.size.width, grid.width)
    return (rows[:, None] * columns).flatten()


def _covered(start: int, length: int, tokens: int) -> Tensor:
    cells = torch.arange(CELLS * tokens)
    return ((cells >= start) & (cells < start + length)).float().view(tokens, CELLS).mean(1)


def explained(drawing: Tensor, laid: Tensor) -> Tensor:
    """Which part of a drawing's variance (3, height, width) a linear map of each picture's colours explains (pictures).

    `laid` is (pictures, 3, height, width). The drawing is what is explained, since it is the same under every move.
    """
    x, y = laid.flatten(2).double(), drawing.flatten(1).double()
    x, y = x - x.mean(2, keepdim=True), y - y.mean(1, keepdim=True)
    inner = x @ x.mT + _RIDGE * x.shape[2] * torch.eye(x.shape[1], dtype=x.dtype)
    across = x @ y.T
    gained = (across * torch.linalg.solve(inner, across)).sum((1, 2))
    part: Tensor = gained / y.square().sum().clamp_min(1e-9)
    return part.float()


def register(pictures: Sequence[Image.Image], drawings: Sequence[Sequence[Tensor]], canvas: Size) -> list[Move]:
    """For each group of drawings the move under which they explain the pictures best.

    `drawings[g][p]` (3, height, width in cells) is the drawing of picture p's caption in group g. What a group has in
    common, one noise, decides where objects lie: so a group has one move, and all groups have one size.
    """
    shortest = min(canvas)
    parts = [side / shortest for side in range(shortest, max(1, round(_SMALLEST * shortest)) - 1, -1)]
    steps = sorted(range(-_FARTHEST, _FARTHEST + 1), key=abs)  # of equals the first is taken: the middle
    best: tuple[float, list[Move]] = (-1.0, [])
    for part in parts:
        moves = [Move(part, right, down) for down, right in product(steps, steps)]
        laid = [_lay_all(picture, moves, canvas) for picture in pictures]
        totals = [sum(map(explained, group, laid), torch.zeros(len(moves))) for group in drawings]
        found = float(sum(each.max() for each in totals))
        if found > best[0]:
            best = (found, [moves[int(each.argmax())] for each in totals])
    return best[1]


def _lay_all(picture: Image.Image, moves: Sequence[Move], canvas: Size) -> Tensor:
    """A picture under moves of one size: (moves, 3, height, width), a pixel a cell."""
    framings = [frame(Size(*picture.size), canvas, move) for move in moves]
    small = np.asarray(picture.resize(framings[0].size, Image.Resampling.BOX), dtype=np.float32)
    return torch.stack([_spread(small / 127.5 - 1, framing, canvas, 1) for framing in framings])
