"""Feed-forward layers written by hand: ramps between two values, made of two kinks each.

A ramp is the difference of two rectified lines (a hard sigmoid, Courbariaux et al. 2015, arXiv:1511.00363). GELU is
such a line wherever its argument is not near zero, so lines are made steep enough that its bend is narrow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from schnell_mini.layers import clear, read_channels

SHARPNESS = 16.0
IDLE = -2.0

Weights = Mapping[int, float]


@dataclass(frozen=True)
class Ramp:
    """Adds `adds` (channel to height) times how far `reads` (weighted sum of channels) is from `start` to `end`."""

    reads: Weights
    start: float
    end: float
    adds: Weights


@dataclass(frozen=True)
class Line:
    """Adds `adds` times `relu(sign * (x - at))` of channel `reads`."""

    reads: int
    at: float
    sign: float
    adds: Weights


@dataclass(frozen=True)
class Part:
    """A feed-forward part: its first layer, its second, the second's column of the first hidden unit, and the spread
    by which the norm before it divides every channel."""

    first: nn.Linear
    second: nn.Linear
    offset: int
    spread: float


def write_part(part: Part, ramps: Sequence[Ramp], lines: Sequence[Line] = ()) -> None:
    """Write the ramps and lines into the part's first units; the others stay idle."""
    with torch.no_grad():
        clear(part.first, part.second)
        part.first.bias.fill_(IDLE)
        rows = iter(range(part.first.out_features))
        for ramp in ramps:
            gain = SHARPNESS / (ramp.end - ramp.start)
            for at, sign in ((ramp.start, 1.0), (ramp.end, -1.0)):
                reads = {channel: gain * weight for channel, weight in ramp.reads.items()}
                write_unit(part, next(rows), reads, -gain * at, scaled(ramp.adds, sign / SHARPNESS))
        for line in lines:
            gain = line.sign * SHARPNESS
            write_unit(part, next(rows), {line.reads: gain}, -gain * line.at, scaled(line.adds, 1 / SHARPNESS))


def write_unit(part: Part, row: int, reads: Weights, bias: float, adds: Weights) -> None:
    """One hidden unit: what it reads and what it adds."""
    part.first.bias[row] = bias
    read_channels(part.first.weight[row], list(reads), part.spread * torch.tensor(list(reads.values())))
    for channel, height in adds.items():
        part.second.weight[channel, part.offset + row] = height


def scaled(weights: Weights, factor: float) -> dict[int, float]:
    """The same weights times a factor."""
    return {channel: weight * factor for channel, weight in weights.items()}
