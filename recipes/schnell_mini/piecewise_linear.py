"""Feed-forward layers with computed weights: piecewise linear functions of a token's channels.

A ramp (0, then linear, then constant: a hard sigmoid, Courbariaux et al. 2015, arXiv:1511.00363) is the difference of
two rectified lines. GELU is a rectified line wherever its argument is not near zero; `SHARPNESS` scales arguments up,
so that this holds on all but a narrow part of the ramp.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from schnell_mini.layers import clear, read_channels

SHARPNESS = 16.0
IDLE_BIAS = -2.0

#: Channel to weight.
Weights = Mapping[int, float]


@dataclass(frozen=True)
class Ramp:
    """Adds `adds` times clip((x - start) / (end - start), 0, 1), where x is the sum of channels weighted by `reads`."""

    reads: Weights
    start: float
    end: float
    adds: Weights


@dataclass(frozen=True)
class Hinge:
    """Adds `adds` times relu(sign * (x - knot)), where x is the channel `reads`."""

    reads: int
    knot: float
    sign: float
    adds: Weights


@dataclass(frozen=True)
class FeedForward:
    """Where a block's feed-forward part lies.

    `first` and `second` are its layers; `offset` is the column of `second` that belongs to the first hidden unit (a
    single block's output layer also takes attention). `spread` is the number by which the norm before `first` divides.
    """

    first: nn.Linear
    second: nn.Linear
    offset: int
    spread: float


def write_feed_forward(part: FeedForward, ramps: Sequence[Ramp], hinges: Sequence[Hinge] = ()) -> None:
    """Write ramps and hinges into the first hidden units, two for a ramp, one for a hinge; the others stay off."""
    with torch.no_grad():
        clear(part.first, part.second)
        part.first.bias.fill_(IDLE_BIAS)
        rows = iter(range(part.first.out_features))
        for ramp in ramps:
            gain = SHARPNESS / (ramp.end - ramp.start)
            for knot, sign in ((ramp.start, 1.0), (ramp.end, -1.0)):
                reads = {channel: gain * weight for channel, weight in ramp.reads.items()}
                write_unit(part, next(rows), reads, -gain * knot, scaled(ramp.adds, sign / SHARPNESS))
        for hinge in hinges:
            gain = hinge.sign * SHARPNESS
            write_unit(part, next(rows), {hinge.reads: gain}, -gain * hinge.knot, scaled(hinge.adds, 1 / SHARPNESS))


def write_unit(part: FeedForward, row: int, reads: Weights, bias: float, adds: Weights) -> None:
    """Write one hidden unit: the channels it reads, its bias, and what it adds to which channels."""
    part.first.bias[row] = bias
    read_channels(part.first.weight[row], list(reads), part.spread * torch.tensor(list(reads.values())))
    for channel, height in adds.items():
        part.second.weight[channel, part.offset + row] = height


def scaled(weights: Weights, factor: float) -> dict[int, float]:
    """The same weights times a factor."""
    return {channel: weight * factor for channel, weight in weights.items()}
