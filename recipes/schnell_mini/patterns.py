"""Random patterns over a whole picture, up to its edges: what looks that users train may do to it.

A decoder that has seen plain grounds alone draws a plain frame around everything else.
"""

from collections.abc import Callable
from math import cos, pi, sin
from random import Random

import torch
from torch import Tensor
from torch.nn import functional

#: Pixels of one period, and the share of pixels that a pattern leaves as they are.
PERIODS, KEPT = (12.0, 56.0), (0.35, 0.75)
#: How much of the picture still shows where the pattern lies.
MOST_SEEN = 0.5
GRADIENT_SHARE, NEGATIVE_SHARE = 0.12, 0.15


def waves(rng: Random, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Two waves of one period `[H, W]` in -1..1, at right angles, turned and moved at random."""
    rows, columns = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    turn = rng.choice((0.0, 0.5 * pi, 0.25 * pi, rng.uniform(0, pi)))
    speed, starts = 2 * pi / rng.uniform(*PERIODS), (rng.uniform(0, 2 * pi), rng.uniform(0, 2 * pi))
    along, across = cos(turn) * columns + sin(turn) * rows, cos(turn) * rows - sin(turn) * columns
    return torch.sin(speed * along + starts[0]), torch.sin(speed * across + starts[1])


def stripes(rng: Random, height: int, width: int) -> Tensor:
    """Where stripes are higher `[H, W]`."""
    return waves(rng, height, width)[0]


def dots(rng: Random, height: int, width: int) -> Tensor:
    """Where dots in rows are higher `[H, W]`."""
    first, second = waves(rng, height, width)
    return first + second


def checks(rng: Random, height: int, width: int) -> Tensor:
    """Where the fields of a chessboard are higher `[H, W]`."""
    first, second = waves(rng, height, width)
    return first * second


def clouds(rng: Random, height: int, width: int) -> Tensor:
    """Where smooth noise is higher `[H, W]`."""
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    cells = rng.randint(4, 16)
    noise = torch.randn(1, 1, cells, cells, generator=generator)
    return functional.interpolate(noise, (height, width), mode="bicubic")[0, 0]


FIELDS: tuple[Callable[[Random, int, int], Tensor], ...] = (stripes, dots, checks, clouds)


def cover(picture: Tensor, rng: Random) -> Tensor:
    """The picture `[3, H, W]` in 0..1 under a random pattern, sometimes as a negative or towards another colour."""
    height, width = picture.shape[1:]
    if rng.random() < NEGATIVE_SHARE:
        picture = 1 - picture
    if rng.random() < GRADIENT_SHARE:
        first, last = rng.sample((0.0, rng.uniform(0.3, 1)), 2)
        return torch.lerp(picture, random_colour(rng), torch.linspace(first, last, width))
    field = rng.choice(FIELDS)(rng, height, width)
    edge = field.flatten().quantile(rng.uniform(*KEPT))
    hidden = (field > edge) * (1 - rng.uniform(0, MOST_SEEN))
    return torch.lerp(picture, random_colour(rng), hidden)


def random_colour(rng: Random) -> Tensor:
    """A colour `[3, 1, 1]`, often black or white."""
    kind = rng.random()
    if kind < 0.3:
        return torch.full((3, 1, 1), 0.02 if kind < 0.2 else 0.98)
    return torch.tensor([rng.random() for _ in range(3)])[:, None, None]
