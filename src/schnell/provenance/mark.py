"""The invisible mark: a faint pattern in a picture's brightness that says "made by schnell" and carries 40 bits.

The pattern is one square tile, repeated. It is a sum of waves whose phases come from SHA-256 of a public name: two
fifths of them always the same, so that a reader finds the tile's scale and place; the rest turned by half a period or
not, as the coded bits say. Where the picture is busy the pattern is stronger, since there it is hidden better.

All arithmetic on pixels is in whole numbers: one picture and one number give the same bytes on every machine.
"""

from functools import cache, lru_cache
from hashlib import sha256
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schnell.provenance.convolutional import encode

#: The scheme as receipts and manifests name it: readers of another one need not look.
SCHEME: Final = "schnell.mark.1"
#: Pixels along a side of the repeated tile.
TILE: Final = 128
#: Periods along the tile of the slowest and the fastest wave: slower ones would shade a plain ground visibly, faster
#: ones do not survive compression.
_SLOWEST: Final = 5.0
FASTEST: Final = 18
_SYNC_SHARE: Final = 0.4
#: The pattern's standard deviation on plain ground, in steps of brightness of which a picture has 255.
STRENGTH: Final = 0.8
#: How much stronger it is for each step of the picture's own standard deviation nearby, and the most that it may be.
_GAIN: Final = 0.1
_STRONGEST: Final = 3.0
#: On plain ground no pixel moves by more than one step: what the eye finds there are the few that move by two or three.
_PEAK: Final = 1.45
_BLOCK: Final = 4
_SKIP: Final = 2
_TILE_UNIT: Final = 64
_MASK_UNIT: Final = 32
_UNIT_BITS: Final = 11  # of their product

Picture = NDArray[np.uint8]


class Waves(NamedTuple):
    """The pattern's waves: periods along the tile in x and y (y is 1 or more), phases in radians; the first are fixed.

    `fixed` counts those that carry no bits.
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    phase: NDArray[np.float64]
    fixed: int


@cache
def waves() -> Waves:
    """The public key schedule. It depends on SHA-256 alone, never on a library's random numbers."""
    y, x = np.mgrid[0 : FASTEST + 1, -FASTEST : FASTEST + 1]
    radius = np.hypot(x, y)
    # the axes are left out: edges of things and of JPEG's blocks lie there
    usable = (y >= 1) & (np.abs(x) >= 1) & (radius >= _SLOWEST) & (radius <= FASTEST)
    x, y = x[usable], y[usable]
    order = np.argsort(_numbers(b"order", len(x)), kind="stable")
    phase = _numbers(b"phase", len(x)).astype(np.float64) * (2 * np.pi / 2**32)
    return Waves(x[order], y[order], phase, int(len(x) * _SYNC_SHARE))


def signs_of(number: int) -> NDArray[np.int8]:
    """The sign of each wave when the tile carries this number."""
    plan, code = waves(), encode(number)
    carrying = len(plan.x) - plan.fixed
    return np.concatenate([np.ones(plan.fixed, np.int8), code[np.arange(carrying) % len(code)]])


def embed(pixels: Picture, number: int) -> Picture:
    """RGB pixels (height, width, 3) with the mark of a number of 40 bits. None moves by more than some steps of 255."""
    height, width = pixels.shape[:2]
    rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
    mask = _mask(pixels, rows, columns)
    repeats = (-(-rows * _BLOCK // TILE), -(-columns * _BLOCK // TILE))
    pattern = np.tile(_tile(number), repeats)[: rows * _BLOCK, : columns * _BLOCK]
    mask = mask.repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)
    # the nearest whole number: half a unit up, then the units alone
    change = ((pattern * mask + (1 << _UNIT_BITS - 1)) >> _UNIT_BITS)[:height, :width]
    marked, moved = np.empty_like(pixels), np.empty_like(change)
    # a colour at a time: the change would have to be repeated for all three otherwise
    for channel in range(3):
        np.add(pixels[..., channel], change, out=moved)
        marked[..., channel] = np.clip(moved, 0, 255, out=moved)
    return marked


@lru_cache(maxsize=4)
def _tile(number: int) -> NDArray[np.int16]:
    """The tile on plain ground, in 64ths of a step."""
    plan = waves()
    spectrum = np.zeros((TILE, TILE), complex)
    values = signs_of(number) * np.exp(1j * plan.phase)
    spectrum[plan.y % TILE, plan.x % TILE] = values
    spectrum[-plan.y % TILE, -plan.x % TILE] = values.conj()
    tile = np.fft.ifft2(spectrum).real
    pattern = np.clip(tile * (STRENGTH / tile.std()), -_PEAK, _PEAK)
    # rounded to 64ths: the last bits of a Fourier transform differ from machine to machine
    rounded: NDArray[np.int16] = np.rint(pattern * _TILE_UNIT).astype(np.int16)
    return rounded


def _mask(pixels: Picture, rows: int, columns: int) -> NDArray[np.int16]:
    """How much stronger the pattern is in each block of 4 x 4 pixels, in 32nds, by every other pixel of other rows.

    A quarter of the pixels tells how busy a picture is as well as all of them do.
    """
    some = pixels[::_SKIP, ::_SKIP]
    size = _BLOCK // _SKIP
    red, green, blue = (some[..., channel].astype(np.uint16) for channel in range(3))
    luma = (red * 77 + green * 150 + blue * 29) >> 8
    margins = (0, rows * size - luma.shape[0]), (0, columns * size - luma.shape[1])
    # sums of whole numbers below 2^24 are exact in float32, whatever their order
    values = np.pad(luma, margins, mode="edge").astype(np.float32)
    total = _sum_of_nine(_block_sums(values, size))
    squares = _sum_of_nine(_block_sums(np.square(values), size))
    count = np.float64(9 * size * size)
    # float64 from here on; division and square root are rounded alike everywhere
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean * mean, 0))
    strength = np.clip(1 + _GAIN * deviation, 1, _STRONGEST) * _MASK_UNIT
    smooth: NDArray[np.int16] = (_sum_of_nine(np.rint(strength)) / 9).astype(np.int16)
    return smooth


def _block_sums(values: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """The sum of each block of size x size. Whole rows go first: ten times as fast as numpy's own sum over both."""
    height, width = values.shape
    lines = values.reshape(height // size, size, width)
    added = sum((lines[:, row] for row in range(1, size)), lines[:, 0]).reshape(-1, width // size, size)
    summed: NDArray[np.float32] = sum((added[..., column] for column in range(1, size)), added[..., 0])
    return summed


def _sum_of_nine(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The sum over each block and its eight neighbours; the outermost are repeated beyond the edge."""
    padded = np.pad(values.astype(np.float64), 1, mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    summed: NDArray[np.float64] = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return summed


def _numbers(label: bytes, count: int) -> NDArray[np.uint32]:
    """Numbers of 32 bits from SHA-256 in counter mode."""
    blocks = -(-count // 8)
    digests = (sha256(b"schnell-mark-1" + label + block.to_bytes(4, "big")).digest() for block in range(blocks))
    return np.frombuffer(b"".join(digests), ">u4")[:count].astype(np.uint32)
