"""The frozen part of a transformer before its first trained block: run once for an example, kept for many steps.

Where LoRAs are trained on late blocks alone, everything before them puts out the same at every step of the training. A
step then repeats the late blocks only.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from schnell.engine.denoise import Drawing, predict_velocity
from schnell.engine.flux import Flux
from schnell.training.low_rank import LowRankLinear


@dataclass(frozen=True, slots=True)
class BlockInputs:
    """What reaches a block, for rows of one token grid.

    `streams` are image and text (rows, tokens, width) before a double block, and both as one sequence, text first,
    before a single one. `signal` is (rows, width); `rotation` belongs to all rows; `text_tokens` counts a row's.
    """

    streams: tuple[Tensor, ...]
    signal: Tensor
    rotation: Tensor
    text_tokens: int

    def take(self, rows: Tensor) -> "BlockInputs":
        """Some of the rows."""
        return BlockInputs(
            tuple(each[rows] for each in self.streams), self.signal[rows], self.rotation, self.text_tokens
        )


def join_inputs(parts: Sequence[BlockInputs]) -> BlockInputs:
    """The rows of all parts, which have one grid."""
    streams = zip(*(part.streams for part in parts), strict=True)
    signal = torch.cat([part.signal for part in parts])
    return BlockInputs(tuple(torch.cat(each) for each in streams), signal, parts[0].rotation, parts[0].text_tokens)


def first_trained_block(transformer: Flux) -> int:
    """The number of the first block with trained factors, double blocks counted first.

    Nothing but blocks has any (`low_rank.TARGETS`).
    """
    trained = (any(isinstance(part, LowRankLinear) for part in block.modules()) for block in _blocks(transformer))
    return next(number for number, is_trained in enumerate(trained) if is_trained)


@torch.no_grad()
def record_inputs(transformer: Flux, drawings: Sequence[Drawing]) -> tuple[BlockInputs, Tensor]:
    """Run the network on drawings of one grid: what reaches the first trained block, and the velocity."""
    block = _blocks(transformer)[first_trained_block(transformer)]
    caught: list[tuple[Tensor, ...]] = []
    with _catching(block, caught):
        velocity = predict_velocity(transformer, drawings)
    *streams, signal, rotation = caught[0]
    text_tokens = drawings[0].prompt.states.shape[0]
    # the same numbers for every pass, so a block that writes into its input must not meet them
    return BlockInputs(tuple(each.clone() for each in streams), signal.clone(), rotation, text_tokens), velocity


def run_from(transformer: Flux, inputs: BlockInputs) -> Tensor:
    """The velocity (rows, image tokens, channels), float32, from what reached the first trained block."""
    streams, signal, rotation = inputs.streams, inputs.signal, inputs.rotation
    for block in _blocks(transformer)[first_trained_block(transformer) :]:
        if len(streams) == 2 and not _is_double(transformer, block):
            streams = (torch.cat([streams[1], streams[0]], dim=1),)
        out = block(*streams, signal, rotation)
        streams = out if isinstance(out, tuple) else (out,)
    joint = streams[0] if len(streams) == 1 else torch.cat([streams[1], streams[0]], dim=1)
    velocity: Tensor = transformer.final_layer(joint[:, inputs.text_tokens :], signal)
    return velocity.float()


def _blocks(transformer: Flux) -> list[Any]:
    return [*transformer.double_blocks, *transformer.single_blocks]


def _is_double(transformer: Flux, block: nn.Module) -> bool:
    return any(block is double for double in transformer.double_blocks)


@contextmanager
def _catching(block: nn.Module, caught: list[tuple[Tensor, ...]]) -> Iterator[None]:
    handle = block.register_forward_pre_hook(lambda _, inputs: caught.append(inputs))
    try:
        yield
    finally:
        handle.remove()
