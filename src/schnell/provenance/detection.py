"""Finds the mark of `provenance.mark` in a picture, also after compression, cropping, resizing, mirroring and turning.

The picture is levelled, so that no busy part of it drowns the rest, and measured at the pattern's waves for each scale
that a resized picture may have. In each of eight orientations the fixed waves are correlated with their known phases at
all shifts of the tile at once (phase correlation, Kuglin and Hines 1975); at the best of them the bits are read.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schnell.provenance.convolutional import CODE_LENGTH, decode
from schnell.provenance.mark import FASTEST, TILE, Picture, waves

#: A correlation of so many standard deviations is a mark; the second, if the checksum of what was read is right, which
#: it is by chance once in 65,536 times. Over 39 scales, 8 orientations and 16,384 shifts, a clean picture reaches
#: one of them about 8 times in a million; 170 of them came to 6.0.
_SURE: Final = (7.0, 5.5)
#: With fifteen times as many scales, as seldom.
_SURE_IF_THOROUGH: Final = (7.5, 6.0)
#: Here the search ends: no other scale will do better.
_BEYOND_DOUBT: Final = 9.0
_SMALLEST_SCALE: Final = 0.2
_LARGEST_SCALE: Final = 3.0
#: Radii in pixels of the neighbourhood that the picture is levelled by; one for each range of scales.
_RADII: Final = (2, 3, 4, 6, 9, 13)
#: Sides in pixels that the service draws.
_DRAWN_SIDES: Final = range(256, 1441, 32)
_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)

#: How a picture was turned or mirrored after it was marked, in the order of `_placements`.
ORIENTATIONS: Final = (
    "upright",
    "mirrored",
    "turned by 180 degrees",
    "mirrored and turned by 180 degrees",
    "turned by 90 degrees",
    "mirrored and turned by 90 degrees",
    "turned by 270 degrees",
    "mirrored and turned by 270 degrees",
)


@dataclass(frozen=True, slots=True)
class MarkReading:
    """What was found of a mark.

    `number` is the 40 bits that it carries, None where they cannot be read; `certainty` the correlation in standard
    deviations (5 is noise, 7 is a mark); `scale` the picture's size over the size that it was drawn in.
    """

    found: bool
    number: int | None
    certainty: float
    scale: float
    orientation: str


class _Candidate(NamedTuple):
    certainty: float
    scale: float
    orientation: int
    shift: tuple[int, int]
    phasors: NDArray[np.complex64]


def find_mark(pixels: Picture, *, thorough: bool = False) -> MarkReading:
    """Search RGB pixels (height, width, 3) for the mark.

    `thorough` also finds pictures that were cropped and then resized, at ten times the cost.
    """
    luma = pixels.astype(np.float32) @ _LUMA
    best: _Candidate | None = None
    levelled: dict[int, NDArray[np.float32]] = {}
    for scale in _scales(luma.shape[1], thorough=thorough):
        radius = min(_RADII, key=lambda each: abs(math.log(each / (6 * scale))))
        if radius not in levelled:
            levelled[radius] = _level(luma, radius)
        candidate = _correlate(_measure(levelled[radius], scale), scale)
        if best is None or candidate.certainty > best.certainty:
            best = candidate
        if best.certainty >= _BEYOND_DOUBT:
            break
    assert best is not None  # noqa: S101 - scale 1 is always tried
    return _read(best, _SURE_IF_THOROUGH if thorough else _SURE)


def phasors_of(pixels: Picture) -> NDArray[np.complex64]:
    """The directions, all of length 1, in which an upright picture at its own size has the pattern's waves."""
    measured = _measure(_level(pixels.astype(np.float32) @ _LUMA, _RADII[3]), 1.0)
    upright: NDArray[np.complex64] = _phasors(measured)[0]
    return upright


def _scales(width: int, *, thorough: bool) -> Iterator[float]:
    """Scales to try, the likeliest first: as drawn, resized from each width that is drawn, then anything between."""
    yield 1.0
    resized = {width / side for side in _DRAWN_SIDES} - {1.0}
    for scale in sorted(resized, key=lambda each: abs(math.log(each))):
        if _SMALLEST_SCALE < scale < _LARGEST_SCALE:
            yield scale
    if thorough:
        yield from np.exp(np.arange(math.log(0.4), math.log(1.6), 0.0025)).tolist()


def _level(luma: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """The picture without its shades, each part weighted as sums of noisy values are: by one over its variance.

    A plain ground says most. The 4 is the variance that compression adds to it.
    """
    detail = luma - _mean_nearby(luma, radius)
    levelled: NDArray[np.float32] = detail / (_mean_nearby(detail * detail, radius) + np.float32(4))
    return levelled


def _mean_nearby(values: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """The mean over a square of 2 radius + 1 pixels; the outermost are repeated beyond the edge."""
    size = 2 * radius + 1
    for axis in (0, 1):
        margins = [(radius + 1, radius) if each == axis else (0, 0) for each in (0, 1)]
        # float64: a running sum over a whole side loses small differences otherwise
        sums = np.cumsum(np.pad(values, margins, mode="edge"), axis, dtype=np.float64)
        difference = sums[size:] - sums[:-size] if axis == 0 else sums[:, size:] - sums[:, :-size]
        values = (difference / size).astype(np.float32)
    return values


def _measure(levelled: NDArray[np.float32], scale: float) -> NDArray[np.complex64]:
    """The picture's Fourier coefficients at 0..18 periods down and -18..18 across a tile of this scale: (19, 37)."""
    height, width = levelled.shape
    across = _oscillations(np.arange(-FASTEST, FASTEST + 1), width, scale)
    down = _oscillations(np.arange(FASTEST + 1), height, scale)
    # two real products are twice as fast as one complex product with a real matrix
    rows = down.real @ levelled + 1j * (down.imag @ levelled)
    measured: NDArray[np.complex64] = rows.astype(np.complex64) @ across.T
    return measured


def _oscillations(periods: NDArray[np.int64], length: int, scale: float) -> NDArray[np.complex64]:
    turns = np.outer(periods, (np.arange(length) + 0.5) / (TILE * scale))
    return np.exp(-2j * np.pi * turns).astype(np.complex64)


@cache
def _placements() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Where each wave lies in `_measure`'s table after each of `ORIENTATIONS`: row, column, conjugated; (8, waves)."""
    plan = waves()
    x, y = plan.x, plan.y
    turned = [(x, y), (-x, y), (-x, -y), (x, -y), (-y, x), (y, x), (y, -x), (-y, -x)]
    across = np.array([pair[0] for pair in turned])
    down = np.array([pair[1] for pair in turned])
    below = down < 0
    # a real picture's coefficients at -k are those at k, conjugated: the table holds one half
    return np.where(below, -down, down), np.where(below, -across, across) + FASTEST, below


def _correlate(measured: NDArray[np.complex64], scale: float) -> _Candidate:
    """The best shift of the tile over all orientations."""
    plan = waves()
    phasors = _phasors(measured)
    fixed = slice(plan.fixed)
    spectrum = np.zeros((len(ORIENTATIONS), TILE, FASTEST + 1), np.complex64)
    spectrum[:, plan.x[fixed] % TILE, plan.y[fixed]] = phasors[:, fixed] * np.exp(-1j * plan.phase[fixed])
    # the slow way round is the same sum over all waves at each shift; most rows of the transform are empty
    sums = np.fft.irfft(np.fft.ifft(spectrum, axis=1), TILE, axis=2) * (TILE * TILE / 2)
    flat = sums.reshape(len(ORIENTATIONS), -1)
    orientation = int(flat.max(1).argmax())
    place = int(flat[orientation].argmax())
    shift_x, shift_y = divmod(place, TILE)
    certainty = float(flat[orientation, place]) / math.sqrt(plan.fixed / 2)
    return _Candidate(certainty, scale, orientation, (shift_x, shift_y), phasors[orientation])


def _phasors(measured: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """The coefficients of each wave in each orientation, (8, waves), all of length 1."""
    down, across, below = _placements()
    values = measured[down, across]
    values = np.where(below, values.conj(), values)
    # phases alone: a strong edge in the picture must not outvote the rest
    phasors: NDArray[np.complex64] = values / (np.abs(values) + np.float32(1e-12))
    return phasors


def _read(candidate: _Candidate, sure: tuple[float, float]) -> MarkReading:
    plan = waves()
    shift_x, shift_y = candidate.shift
    shifted = np.exp(2j * np.pi * (plan.x * shift_x + plan.y * shift_y) / TILE - 1j * plan.phase)
    seen = (candidate.phasors * shifted).real[plan.fixed :]
    # a sign that several waves carry counts once for each
    soft: NDArray[np.float64] = np.bincount(np.arange(len(seen)) % CODE_LENGTH, seen, CODE_LENGTH).astype(np.float64)
    number, checks = decode(soft)
    found = candidate.certainty >= sure[checks]
    return MarkReading(
        found=found,
        number=number if checks and found else None,
        certainty=candidate.certainty,
        scale=candidate.scale,
        orientation=ORIENTATIONS[candidate.orientation],
    )
