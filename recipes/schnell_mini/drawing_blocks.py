"""Training of the single blocks after the key-value blocks, by gradient: what is not linear in the codes.

All weights before them are computed and stay frozen: their large constants cancel each other, and gradient steps would
break that. So a drawing block's norm scales each channel to about unit variance, and the block adds to no channel that
the computed weights rely on. At first it adds nothing. Because the noise decides where the object lies, a picture has
one right answer, and from pure noise the loss is a plain regression.

Blocks read neither the noisy latents nor the noise level: position and codes say everything, and what a block sees half
done are its own mistakes, which it would trust. So every step points to the same picture.
"""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from schnell.engine.denoise import predict_velocity
from schnell_mini import layout
from schnell_mini.adapter_block import ADAPTER_BLOCKS
from schnell_mini.code_conditioning import CodeConditioner, conditioned_by_codes
from schnell_mini.key_value_blocks import KEY_VALUE_BLOCKS
from schnell_mini.loop import AveragedLearner, MovingAverage, mixed_precision, optimizer_step, rate_factor
from schnell_mini.networks import as_velocity
from schnell_mini.picture_dataset import PictureDataset
from schnell_mini.placement import LARGEST_SIDE, Grid
from schnell_mini.position_weights import POSITION_BLOCKS
from schnell_mini.sampling import start_drawings

RATE = 1e-3
AVERAGED = 0.999
TOKENS_PER_BATCH = {"cuda": 20_000, "cpu": 2_400}
TEXT_TOKENS = 32
READ_GAINS = ((layout.BACKGROUND, 9.0), (layout.POSITION, 3.0), (layout.OBJECT, 9.0))
OTHER_READ_GAIN = 3.0
MODULATION_SPREAD = 0.02
INITIAL_GATE = 0.1
USUAL_GRIDS = (
    *(Grid(16, 16),) * 8,
    *(Grid(8, 8),) * 4,
    *(Grid(12, 21), Grid(21, 12), Grid(13, 19), Grid(19, 13), Grid(14, 17), Grid(17, 14)),
    *(Grid(6, 11), Grid(11, 6), Grid(7, 10), Grid(10, 7), Grid(7, 9), Grid(9, 7)),
)
ANY_GRID_SHARE = 0.2
MOST_TOKENS = 400


def find_drawing_blocks(transformer: FluxTransformer2DModel) -> list[Any]:
    """The single blocks between the key-value blocks and the adapter block."""
    return list(transformer.single_transformer_blocks)[POSITION_BLOCKS + KEY_VALUE_BLOCKS : -ADAPTER_BLOCKS]


class CentredCodes(nn.Module):
    """SiLU, then codes shifted and scaled to zero mean and unit variance; zero in the other channels.

    A block is trained with this in place of its SiLU. It is linear after the SiLU, so `fold_centring` can move it into
    the weights.
    """

    centre: Tensor
    gain: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        centre, gain = torch.zeros(width), torch.zeros(width)
        centre[: layout.ALL_CODES], gain[: layout.ALL_CODES] = layout.CODE_OFFSET, 1 / layout.CODE_SPREAD
        self.register_buffer("centre", centre, persistent=False)
        self.register_buffer("gain", gain, persistent=False)

    def forward(self, embedding: Tensor) -> Tensor:
        """`[B, width]` to `[B, width]`."""
        return (nn.functional.silu(embedding) - self.centre) * self.gain


def writable_channels(width: int) -> Tensor:
    """1 for channels that drawing blocks may add to, 0 for noise, positions and the constants `[width]`."""
    free = torch.ones(width)
    for kept in (layout.NOISE, layout.POSITION, slice(layout.ZERO, width)):
        free[kept] = 0.0
    return free


@torch.no_grad()
def initialise_block(block: Any) -> None:
    """Make a block that adds nothing yet; its modulation reads centred codes until `fold_centring`."""
    linear = block.norm.linear
    width = linear.in_features
    block.norm.silu = CentredCodes(width).to(linear.weight.device)
    linear.weight.normal_(std=MODULATION_SPREAD)
    linear.bias.zero_()
    scale, gate = linear.bias[width : 2 * width], linear.bias[2 * width :]
    scale.fill_(OTHER_READ_GAIN - 1)
    for channels, gain in READ_GAINS:
        scale[channels] = gain - 1
    scale[-layout.FILLER :] = -1.0
    stop_reading_noise(linear)
    gate.fill_(INITIAL_GATE)
    block.proj_out.weight.zero_()
    block.proj_out.bias.zero_()


@torch.no_grad()
def fold_centring(block: Any) -> None:
    """Move the centring into the modulation's weights, so that the block is FLUX's own again."""
    linear, centring = block.norm.linear, block.norm.silu
    linear.weight.mul_(centring.gain)
    linear.bias.sub_(linear.weight @ centring.centre)
    block.norm.silu = nn.SiLU()


@torch.no_grad()
def reopen_block(block: Any) -> None:
    """Undo `fold_centring`, so that a finished block can be trained again.

    One that reads noise and its level first becomes what it is at pure noise, without the noise.
    """
    linear = block.norm.linear
    centring = CentredCodes(linear.in_features).to(linear.weight.device)
    linear.bias.add_(layout.TIME_SCALE * linear.weight[:, layout.TIME])
    linear.bias.add_(linear.weight @ centring.centre)
    linear.weight.mul_(torch.where(centring.gain > 0, 1 / centring.gain.clamp_min(1e-9), 0.0))
    stop_reading_noise(linear)
    block.norm.silu = centring


def stop_reading_noise(modulation: nn.Linear) -> None:
    """Let a block's norm multiply the noisy latents by nothing."""
    unread = noise_scales(modulation.in_features)
    modulation.weight[unread], modulation.bias[unread] = 0.0, -1.0


def noise_scales(width: int) -> slice:
    """The outputs of a block's modulation that its norm multiplies the noisy latents by, less 1."""
    return slice(width + layout.NOISE.start, width + layout.NOISE.stop)


def with_mixed_precision(forward: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """A block's forward in mixed precision.

    Only the insides of blocks: between them tokens stay in float32, since positions would blur in bfloat16.
    """

    def run(*inputs: Any, **named: Any) -> Any:
        with mixed_precision(device):
            return forward(*inputs, **named)

    return run


def without_noise(gradient: Tensor) -> Tensor:
    """The gradient of a modulation's weight or bias, none where it would learn to read the noise."""
    changed = gradient.clone()
    changed[noise_scales(len(gradient) // 3)] = 0.0
    return changed


class LearnerOfBlocks(AveragedLearner):
    """What trains the drawing blocks keeps, whatever it learns from: all else of the transformer is frozen.

    `prepare` opens each block for training; `finish` closes it.
    """

    kept = "blocks"

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        dataset: PictureDataset,
        prepare: Callable[[Any], None],
        rate: float,
        averaged: float,
    ) -> None:
        self.transformer: Any = transformer.requires_grad_(requires_grad=False).eval()
        self.dataset, self.device = dataset, torch.device(transformer.device)
        self.blocks = nn.ModuleList(find_drawing_blocks(transformer)).requires_grad_(requires_grad=True)
        free = writable_channels(transformer.x_embedder.out_features).to(self.device)
        for block in find_drawing_blocks(transformer):
            prepare(block)
            for parameter in block.proj_out.parameters():
                parameter.register_hook(lambda grad: grad * free.view(-1, *[1] * (grad.dim() - 1)))
            for parameter in block.norm.linear.parameters():
                parameter.register_hook(without_noise)
        self.rng, self.done = Random(0), 0
        self.average = MovingAverage(self.blocks, averaged)
        groups = [{"params": list(self.blocks.parameters()), "base": rate}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)

    def finish(self) -> None:
        """Put the averaged weights in place, in the form of a stock FLUX model."""
        self.average.copy_to(self.blocks)
        for block in self.blocks:
            fold_centring(block)
        self.transformer.eval()


class BlockLearner(LearnerOfBlocks):
    """Trains new drawing blocks."""

    name = "blocks"

    def __init__(
        self, transformer: FluxTransformer2DModel, conditioner: CodeConditioner, dataset: PictureDataset
    ) -> None:
        super().__init__(transformer, dataset, initialise_block, RATE, AVERAGED)
        self.conditioner = conditioner
        for block in find_drawing_blocks(transformer):
            block.forward = with_mixed_precision(block.forward, self.device)

    def update(self, progress: float) -> Tensor:
        """One optimizer step; the mean squared error of the clean latents that the predicted velocity points to."""
        grid = self.sample_grid()
        count = max(1, TOKENS_PER_BATCH[self.device.type] // (grid.tokens + TEXT_TOKENS))
        batch = self.dataset.sample(self.rng, grid, count)
        prompts = self.conditioner.condition(self.rng, batch.icons, batch.colours)
        drawings = start_drawings(prompts, batch.noise, [(1.0, 0.0)] * count, grid.size)
        with conditioned_by_codes(self.transformer):
            velocity = predict_velocity(as_velocity(self.transformer), drawings)
        loss = (batch.noise - velocity - batch.clean).pow(2).mean()
        optimizer_step(self.optimizer, loss, self.blocks, rate_factor(progress, self.done, 100, 0.3, 0.01))
        self.average.add(self.blocks)
        self.done += 1
        return loss.detach()

    def sample_grid(self) -> Grid:
        """The canvas of a usual size, or any that is not too large."""
        if self.rng.random() > ANY_GRID_SHARE:
            return self.rng.choice(USUAL_GRIDS)
        height = self.rng.randint(4, LARGEST_SIDE)
        return Grid(height, self.rng.randint(4, min(LARGEST_SIDE, MOST_TOKENS // height)))

    def finish(self) -> None:
        """Put the averaged weights in place, in the form of a stock FLUX model."""
        for block in find_drawing_blocks(self.transformer):
            del block.forward
        super().finish()
