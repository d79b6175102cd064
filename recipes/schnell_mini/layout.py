"""What each of a token's 256 channels inside the transformer means, and where the conditioning embedding holds codes.

The blocks whose weights are computed (`position_weights`, `key_value_blocks`) agree on this table:

| channels | meaning |
|---|---|
| 0-63 | the noisy latents, scaled (`NOISE`) |
| 64-75 | three background codes for each of the token's four latents (`BACKGROUND`) |
| 76-111 | the token's row, column and view, one-hot (`POSITION`) |
| 112-175 | the predicted object, negated and scaled (`OBJECT`) |
| 231-245 | intermediate results of the position weights (`SCRATCH`) |
| 247 | always zero before a norm (`ZERO`) |
| 248-255 | large constants (`FILLER`) |
"""

from math import sqrt

import torch
from torch import Tensor

from schnell_mini.placement import POSITION_CODES, VIEW_SIDES

TOKEN_CHANNELS = 64
NOISE = slice(0, TOKEN_CHANNELS)
BACKGROUND = slice(64, 76)
POSITION = slice(76, 76 + POSITION_CODES)
FIRST_ROW, FIRST_COLUMN, FIRST_VIEW = 76, 76 + VIEW_SIDES[0], 76 + 2 * VIEW_SIDES[0]
OBJECT_START = 76 + POSITION_CODES
OBJECT = slice(OBJECT_START, OBJECT_START + TOKEN_CHANNELS)
SCRATCH = 231
ZERO = 247
FILLER = 8
FILLER_ENERGY = 2048.0
NOISE_SCALE = 0.25

# The conditioning embedding (`time_text_embed`): codes first, then one channel that holds the time.
APPEARANCE_CODES = 184
BACKGROUND_CODES = 3
ALL_CODES = APPEARANCE_CODES + BACKGROUND_CODES
TIME = ALL_CODES + 14
#: That channel is this number divided by the noise level.
TIME_SCALE = 8.0
#: A code c is held as CODE_OFFSET + CODE_SPREAD * c after SiLU: positive, where SiLU loses nothing.
CODE_SPREAD, CODE_OFFSET = 0.7, 5.0


def filler() -> Tensor:
    """The constants of the last channels `[8]`: so large that a token's standard deviation hardly depends on the rest.

    A LayerNorm then divides every token by the same known number (`token_spread`), so computed weights can undo it.
    """
    return sqrt(FILLER_ENERGY / FILLER) * torch.tensor([1.0, -1.0] * (FILLER // 2))


def token_spread(width: int) -> float:
    """A token's standard deviation over `width` channels, by which every LayerNorm divides."""
    return sqrt(FILLER_ENERGY / width)


def code_channels(count: int) -> list[int]:
    """The channels that a key-value block's modulation fills with the first `count` appearance codes.

    They are those of noise and object, and the free ones behind: the norm's scale silences what they held before.
    """
    free = range(OBJECT_START, OBJECT_START + APPEARANCE_CODES - TOKEN_CHANNELS)
    return (list(range(TOKEN_CHANNELS)) + list(free))[:count]
