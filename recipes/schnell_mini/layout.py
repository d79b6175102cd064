"""Which of a token's 256 inner channels mean what, from the double blocks to the last layer."""

from math import sqrt

import torch
from torch import Tensor

from schnell_mini.placement import CODE, SIDES

CHANNELS = 64
NOISE = slice(0, CHANNELS)
COVER = slice(64, 76)
PLACE = slice(76, 76 + CODE)
ROWS, COLUMNS, KIND = 76, 76 + SIDES[0], 76 + 2 * SIDES[0]
FREE = 76 + CODE
OBJECT = slice(FREE, FREE + CHANNELS)
SCRATCH = 231
ZERO = 247
FILL = 8
ENERGY = 2048.0
NOISE_SCALE = 0.25
LOOKS = 184
COLOUR_CODES = 3
TIME_CODE = LOOKS + COLOUR_CODES
TIME = TIME_CODE + 14
LOOK_SPREAD, LOOK_OFFSET = 0.7, 5.0


def filling() -> Tensor:
    """The constant in the last channels `[8]`, large enough that a token's norm hardly depends on the rest."""
    return sqrt(ENERGY / FILL) * torch.tensor([1.0, -1.0] * (FILL // 2))


def spread(width: int) -> float:
    """A token's standard deviation, which every norm divides by."""
    return sqrt(ENERGY / width)


def look_channels(count: int) -> list[int]:
    """The channels through which the single blocks are told what the object looks like."""
    return (list(range(CHANNELS)) + list(range(FREE, FREE + LOOKS - CHANNELS)))[:count]
