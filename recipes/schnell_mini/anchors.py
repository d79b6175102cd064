"""Two anchor tokens that T5 puts before every text, the same whatever the text says.

The position weights compare the attention that an image token gives to each. Both have position (0, 0, 0), as all of
FLUX's text tokens have. Each has a channel of T5's output to itself, which no other token and no layer writes to. Its
embedding is so long in that channel that T5's last norm leaves nothing of what layers add elsewhere.
"""

from math import sqrt

import torch
from transformers import T5EncoderModel

from schnell_mini import layout
from schnell_mini.tokens import ANCHORS, SPECIAL

ANCHOR_CHANNELS = (0, 1)
EMBEDDING_NORM = 300.0
WORD_SPREAD = 0.1


def normed_anchor(width: int) -> float:
    """An anchor's value in its channel after the LayerNorm of the transformer's first block (`width` channels)."""
    return width / sqrt(layout.FILLER_ENERGY + width)


def prepare_t5(t5: T5EncoderModel) -> None:
    """Give words random embeddings and anchors their channels, and keep T5's layers from writing into these."""
    first = len(SPECIAL)
    with torch.no_grad():
        t5.shared.weight[first:].normal_(std=WORD_SPREAD)
        t5.shared.weight[:, list(ANCHOR_CHANNELS)] = 0.0
        for anchor, channel in zip(ANCHORS, ANCHOR_CHANNELS, strict=True):
            row = SPECIAL.index(anchor)
            t5.shared.weight[row] = 0.0
            t5.shared.weight[row, channel] = EMBEDDING_NORM
        for name, weight in t5.named_parameters():
            if name.endswith(("SelfAttention.o.weight", "DenseReluDense.wo.weight")):
                weight[list(ANCHOR_CHANNELS)] = 0.0
