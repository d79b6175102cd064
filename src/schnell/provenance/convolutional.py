"""A short number as many signs, so that it is read back although most of them are noise.

The number's bits and their checksum run through a convolutional code of constraint length 7 and rate 1/4 (generators
133, 171, 165, 117 octal); Viterbi's algorithm finds the likeliest bits from soft values. Source: J. G. Proakis, Digital
Communications, 4th edition, chapter 8.
"""

from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Bits of a number, and of the checksum behind it.
NUMBER_BITS: Final = 40
CHECK_BITS: Final = 16
_GENERATORS: Final = (0o133, 0o171, 0o165, 0o117)
_MEMORY: Final = 6
_STATES: Final = 1 << _MEMORY
_STEPS: Final = NUMBER_BITS + CHECK_BITS + _MEMORY
#: Signs of one coded number.
CODE_LENGTH: Final = _STEPS * len(_GENERATORS)

Bits = NDArray[np.uint8]


class _Trellis(NamedTuple):
    """For each state (64) its two predecessors, the bit that led from them here, and the signs sent on the way."""

    before: NDArray[np.intp]  # (64, 2)
    bit: NDArray[np.uint8]  # (64, 2)
    signs: NDArray[np.float64]  # (64, 2, 4)


def encode(number: int) -> NDArray[np.int8]:
    """The signs (+1 or -1, `CODE_LENGTH` of them) of a number of 40 bits."""
    register, signs = 0, []
    # six zeros at the end bring the encoder back to state 0, where the decoder knows it to be
    for bit in [*_with_check(number), *[0] * _MEMORY]:
        register = (register << 1 | bit) & (2 * _STATES - 1)
        signs += [1 - 2 * _parity(register & generator) for generator in _GENERATORS]
    return np.array(signs, np.int8)


def decode(soft: NDArray[np.float64]) -> tuple[int, bool]:
    """The likeliest number for soft signs (`CODE_LENGTH` values), and whether its checksum is right."""
    trellis = _trellis()
    seen = soft.reshape(_STEPS, len(_GENERATORS))
    score = np.full(_STATES, -1e9)
    score[0] = 0.0
    choices = np.empty((_STEPS, _STATES), np.uint8)
    for step in range(_STEPS):
        candidates = score[trellis.before] + trellis.signs @ seen[step]
        choices[step] = candidates.argmax(1)
        score = candidates.max(1)
    bits, state = [], 0
    for step in reversed(range(_STEPS)):
        choice = choices[step, state]
        bits.append(int(trellis.bit[state, choice]))
        state = int(trellis.before[state, choice])
    bits.reverse()
    number = int("".join(map(str, bits[:NUMBER_BITS])), 2)
    return number, bits[: NUMBER_BITS + CHECK_BITS] == _with_check(number)


def _with_check(number: int) -> list[int]:
    bits = [number >> place & 1 for place in reversed(range(NUMBER_BITS))]
    check = _crc16(bits)
    return bits + [check >> place & 1 for place in reversed(range(CHECK_BITS))]


def _crc16(bits: list[int]) -> int:
    """CRC-16/CCITT-FALSE (polynomial 1021, start FFFF) of bits."""
    register = 0xFFFF
    for bit in bits:
        register ^= bit << 15
        register = (register << 1 ^ 0x1021 if register & 0x8000 else register << 1) & 0xFFFF
    return register


def _parity(value: int) -> int:
    return value.bit_count() & 1


@cache
def _trellis() -> _Trellis:
    arrivals: list[list[tuple[int, int]]] = [[] for _ in range(_STATES)]
    for state in range(_STATES):
        for bit in (0, 1):
            arrivals[(state << 1 | bit) & (_STATES - 1)].append((state, bit))
    signs = [
        [[1.0 - 2 * _parity((before << 1 | bit) & generator) for generator in _GENERATORS] for before, bit in pair]
        for pair in arrivals
    ]
    before = np.array([[before for before, _ in pair] for pair in arrivals], np.intp)
    return _Trellis(before, np.array([[bit for _, bit in pair] for pair in arrivals], np.uint8), np.array(signs))
