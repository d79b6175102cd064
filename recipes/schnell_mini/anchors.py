"""Two tokens that T5 puts before every text, always the same whatever the text says.

The transformer finds places by them: they lie at the origin and can be told from all other tokens. Each has a channel
of its own that nothing else writes; its embedding is so long there that what the layers add to it vanishes in the
last norm.
"""

from math import sqrt

import torch
from transformers import T5EncoderModel

from schnell_mini import layout
from schnell_mini.tokens import ANCHORS, SPECIAL

CHANNELS = (0, 1)
LENGTH = 300.0
WORD_SPREAD = 0.1


def heard(width: int) -> float:
    """An anchor's strength in its channel after the transformer's norm."""
    return width / sqrt(layout.ENERGY + width)


def prepare_t5(t5: T5EncoderModel) -> None:
    """Random words, anchors in their channels, and no layer that writes into these."""
    first = len(SPECIAL)
    with torch.no_grad():
        t5.shared.weight[first:].normal_(std=WORD_SPREAD)
        t5.shared.weight[:, list(CHANNELS)] = 0.0
        for anchor, channel in zip(ANCHORS, CHANNELS, strict=True):
            row = SPECIAL.index(anchor)
            t5.shared.weight[row] = 0.0
            t5.shared.weight[row, channel] = LENGTH
        for name, weight in t5.named_parameters():
            if name.endswith(("SelfAttention.o.weight", "DenseReluDense.wo.weight")):
                weight[list(CHANNELS)] = 0.0
