"""The last single block: it changes nothing by itself and is the one that LoRAs train.

Its hidden units hold each token's predicted object and background, without the noise: every channel's positive and
negative part, and random features (Rahimi and Recht 2007). A LoRA on the block's second layer (`proj_out`) is then
one map, the same at every position, from what a token shows to what it should show instead; a few pictures suffice to
learn it. A LoRA on the key-value blocks would have to learn each position separately.
"""

from typing import Any

import torch
from torch import nn

from schnell_mini import layout
from schnell_mini.layers import clear, open_gate, read_channels

ADAPTER_BLOCKS = 1
GAIN = 8.0
BIAS_SPREAD = 1.5


def write_adapter_block(block: Any) -> None:
    """Write the block's hidden units; attention and output stay zero, the gate is open."""
    with torch.no_grad():
        attention = block.attn
        clear(attention.to_q, attention.to_k, attention.to_v, block.proj_mlp, block.proj_out)
        open_gate(block.norm.linear)
        write_features(block.proj_mlp)


def write_features(layer: nn.Linear) -> None:
    """Two units for each channel, which GELU turns into its two signs' parts; then random directions with biases."""
    background, predicted = layout.BACKGROUND, layout.OBJECT
    channels = [*range(background.start, background.stop), *range(predicted.start, predicted.stop)]
    count, generator = len(channels), torch.Generator().manual_seed(0)
    signs = torch.cat([torch.eye(count), -torch.eye(count)])
    rest = layer.out_features - len(signs)
    directions = torch.randn(rest, count, generator=generator)
    reads = torch.cat([signs, directions / directions.norm(dim=1, keepdim=True) * count**0.5 / 4])
    reads *= GAIN * layout.token_spread(layer.in_features)
    read_channels(layer.weight, channels, reads)
    layer.bias[len(signs) :] = BIAS_SPREAD * torch.randn(rest, generator=generator).to(layer.bias)
