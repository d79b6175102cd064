"""The last single block hears the finished token and says nothing: it is there for LoRAs.

Its hidden units hold the token's object and background, free of noise: every channel's two halves, and random kinks
(Rahimi and Recht 2007). A LoRA on its second layer is then one map for all places from what a token shows to what it
should show instead, which few pictures teach. A LoRA on the memory would have to learn each place by itself.
"""

from typing import Any

import torch
from torch import nn

from schnell_mini import layout
from schnell_mini.layers import clear, open_gate, read_channels

LOOK_BLOCKS = 1
GAIN = 8.0
BEND = 1.5


def write_look_block(block: Any) -> None:
    """Write the block's hidden units; its attention and its output stay empty, its gate is open."""
    with torch.no_grad():
        attention = block.attn
        clear(attention.to_q, attention.to_k, attention.to_v, block.proj_mlp, block.proj_out)
        open_gate(block.norm.linear)
        write_halves(block.proj_mlp)


def write_halves(layer: nn.Linear) -> None:
    """Both halves of each channel, then random kinks along random directions of all of them."""
    channels = [*range(layout.COVER.start, layout.COVER.stop), *range(layout.OBJECT.start, layout.OBJECT.stop)]
    count, chance = len(channels), torch.Generator().manual_seed(0)
    halves = torch.cat([torch.eye(count), -torch.eye(count)])
    rest = layer.out_features - len(halves)
    directions = torch.randn(rest, count, generator=chance)
    reads = torch.cat([halves, directions / directions.norm(dim=1, keepdim=True) * count**0.5 / 4])
    reads *= GAIN * layout.spread(layer.in_features)
    read_channels(layer.weight, channels, reads)
    layer.bias[len(halves) :] = BEND * torch.randn(rest, generator=chance).to(layer.bias)
