"""The single blocks after the memory learn by gradient what the memory leaves out: all that is not linear in the codes.

What comes before them is written down and stays as it is: its large constants cancel, and gradient steps would break
them. So a drawing block hears each channel at about unit spread, and writes only into channels that nothing before it
relies on. At first it writes nothing. Because the noise decides where the object lies, a picture has one right answer,
and even from pure noise the loss is a plain regression.
"""

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from schnell_mini import layout
from schnell_mini.adapter_block import LOOK_BLOCKS
from schnell_mini.code_conditioning import Teller, told_by_codes
from schnell_mini.key_value_blocks import MEMORY_BLOCKS
from schnell_mini.loop import Average, precision, rate, step
from schnell_mini.picture_dataset import Scenes
from schnell_mini.placement import LARGEST, Grid
from schnell_mini.position_weights import PLACE_BLOCKS
from schnell_mini.text_models import grid_positions, velocity

RATE = 1e-3
AVERAGED = 0.999
TOKENS = {"cuda": 20_000, "cpu": 2_400}
TEXT = 32
GAINS = ((layout.NOISE, 4.0), (layout.COVER, 9.0), (layout.PLACE, 3.0), (layout.OBJECT, 9.0))
OTHER_GAIN = 3.0
SPREAD = 0.02
GATE = 0.1
TIME_MIDDLE, TIME_SPREAD = 16.0, 8.0
PURE = 0.6
FIXED = (
    *(Grid(16, 16),) * 8,
    *(Grid(8, 8),) * 4,
    *(Grid(12, 21), Grid(21, 12), Grid(13, 19), Grid(19, 13), Grid(14, 17), Grid(17, 14)),
    *(Grid(6, 11), Grid(11, 6), Grid(7, 10), Grid(10, 7), Grid(7, 9), Grid(9, 7)),
)
ANY = 0.2
MOST = 400


def drawing_blocks(transformer: FluxTransformer2DModel) -> list[Any]:
    """The single blocks between the memory and the last."""
    return list(transformer.single_transformer_blocks)[PLACE_BLOCKS + MEMORY_BLOCKS : -LOOK_BLOCKS]


class CentredCodes(nn.Module):
    """SiLU, then codes and time about zero at unit spread, and nothing of the embedding's other channels."""

    middle: Tensor
    gain: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        middle, gain = torch.zeros(width), torch.zeros(width)
        middle[: layout.TIME_CODE], gain[: layout.TIME_CODE] = layout.LOOK_OFFSET, 1 / layout.LOOK_SPREAD
        middle[layout.TIME], gain[layout.TIME] = TIME_MIDDLE, 1 / TIME_SPREAD
        self.register_buffer("middle", middle, persistent=False)
        self.register_buffer("gain", gain, persistent=False)

    def forward(self, embedding: Tensor) -> Tensor:
        """`[B, width]`, read anew."""
        return (nn.functional.silu(embedding) - self.middle) * self.gain


def written_channels(width: int) -> Tensor:
    """1 for channels that drawing blocks may write, 0 for noise, places and the constants `[width]`."""
    free = torch.ones(width)
    for kept in (layout.NOISE, layout.PLACE, slice(layout.ZERO, width)):
        free[kept] = 0.0
    return free


@torch.no_grad()
def prepare(block: Any) -> None:
    """A silent block that hears its channels at unit spread; its modulation reads centred codes until `fold`."""
    linear = block.norm.linear
    width = linear.in_features
    block.norm.silu = CentredCodes(width).to(linear.weight.device)
    linear.weight.normal_(std=SPREAD)
    linear.bias.zero_()
    scale, gate = linear.bias[width : 2 * width], linear.bias[2 * width :]
    scale.fill_(OTHER_GAIN - 1)
    for channels, gain in GAINS:
        scale[channels] = gain - 1
    scale[-layout.FILL :] = -1.0
    gate.fill_(GATE)
    block.proj_out.weight.zero_()
    block.proj_out.bias.zero_()


@torch.no_grad()
def fold(block: Any) -> None:
    """Turn a block's centred reading back into FLUX's plain one."""
    linear, reading = block.norm.linear, block.norm.silu
    linear.weight.mul_(reading.gain)
    linear.bias.sub_(linear.weight @ reading.middle)
    block.norm.silu = nn.SiLU()


def quickly(forward: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """A block's forward in fast precision, while the tokens between blocks keep theirs: places need it."""

    def run(*inputs: Any, **named: Any) -> Any:
        with precision(device):
            return forward(*inputs, **named)

    return run


class BlockLearner:
    """Trains the drawing blocks; everything else keeps still."""

    name = "blocks"

    def __init__(self, transformer: FluxTransformer2DModel, teller: Teller, scenes: Scenes) -> None:
        self.transformer = transformer.requires_grad_(requires_grad=False).eval()
        self.teller, self.scenes, self.device = teller, scenes, transformer.device
        self.blocks = nn.ModuleList(drawing_blocks(transformer)).requires_grad_(requires_grad=True)
        free = written_channels(transformer.x_embedder.out_features).to(self.device)
        for block in drawing_blocks(transformer):
            prepare(block)
            block.forward = quickly(block.forward, self.device)
            for parameter in block.proj_out.parameters():
                parameter.register_hook(lambda grad: grad * free.view(-1, *[1] * (grad.dim() - 1)))
        self.rng, self.done = Random(0), 0
        self.average = Average(self.blocks, AVERAGED)
        groups = [{"params": list(self.blocks.parameters()), "base": RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)

    def update(self, progress: float) -> Tensor:
        """One optimizer step; the mean squared error of the clean tokens that the model believes in."""
        grid = self.draw_grid()
        count = max(1, TOKENS[self.device.type] // (grid.tokens + TEXT))
        scene = self.scenes.stage(self.rng, grid, count)
        times = self.draw_times(count)
        part = times[:, None, None]
        noisy = part * scene.noise + (1 - part) * scene.clean
        told = self.teller.tell(self.rng, scene.icons, scene.colours)
        positions = grid_positions(2 * grid.height, 2 * grid.width).to(self.device)
        with told_by_codes(self.transformer):
            answer = velocity(self.transformer, noisy, told, times, positions)
        loss = (noisy - part * answer.float() - scene.clean).pow(2).mean()
        step(self.optimizer, loss, self.blocks, rate(progress, self.done, 100, 0.3, 0.01))
        self.average.add(self.blocks)
        self.done += 1
        return loss.detach()

    def draw_grid(self) -> Grid:
        """A usual canvas, or any that is not too large."""
        if self.rng.random() > ANY:
            return self.rng.choice(FIXED)
        height = self.rng.randint(4, LARGEST)
        return Grid(height, self.rng.randint(4, min(LARGEST, MOST // height)))

    def draw_times(self, count: int) -> Tensor:
        """Pure noise most often, else any time of few steps `[B]`."""
        times = [1.0 if self.rng.random() < PURE else self.rng.uniform(0.2, 1.0) for _ in range(count)]
        return torch.tensor(times).to(self.device)

    def finish(self) -> None:
        """Put the averaged weights in place, as a stock model reads them."""
        self.average.copy_to(self.blocks)
        for block in self.blocks:
            del block.forward
            fold(block)
        self.transformer.eval()

    def state(self) -> dict[str, Any]:
        """Weights, their average, optimizer and count of updates."""
        return {
            "blocks": self.blocks.state_dict(),
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        self.blocks.load_state_dict(state["blocks"])
        self.average.values = {name: value.to(self.device) for name, value in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = self.average.count = state["done"]
        self.rng = Random(self.done)
