"""The double blocks are written down: attention reads where a token lies, the feed-forward parts name the place.

Learned by gradient, places come last of all and never sharp. Here they are known from the start:

- In the first block the image asks the text tokens, which lie at the origin, along one slow rotary frequency (Su et
  al. 2021, arXiv:2104.09864) of the rows and one of the columns: how much of its attention goes there is a function
  of the place. A third head attends evenly and so counts the tokens and takes the noise's mean.
- In the second block an even head takes the mean place, and with it the canvas's height and width.
- Each feed-forward part is a layer of random kinks (Rahimi and Recht 2007) whose sum is solved by least squares:
  rows and columns, then places within the view, then their one-hot codes.

The text's content stays out of these blocks for now; text reaches the picture through the modulations.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from schnell.training.mini import layout
from schnell.training.mini.flow import Conditions, grid_positions, velocity
from schnell.training.mini.loop import precision
from schnell.training.mini.pose import SIDES, Grid, place_codes
from schnell.training.mini.scenes import Scenes

A, B, COUNT, DOWN, RIGHT = 236, 237, 238, 240, 241
ROW, COLUMN, MEAN_ROW, MEAN_COLUMN = 230, 231, 232, 233
VIEW_ROW, VIEW_COLUMN = 226, 227
SCRATCH = (A, B, COUNT, DOWN, RIGHT, ROW, COLUMN, MEAN_ROW, MEAN_COLUMN, VIEW_ROW, VIEW_COLUMN)
KINDS = tuple(range(layout.KIND, layout.KIND + len(SIDES)))
ROW_AXIS, COLUMN_AXIS, SLOW = 8, 36, 4
LEVEL = 4.0
CLEAR = 0.03
SCALE = 8.0
NEAR = (0.008, -0.008, 0.016, -0.016, 0.025, -0.025, 0.04, -0.04, 0.08, -0.08, 0.3, -0.3)
STEEP = 40.0
NEARER = (0.1, -0.1, 0.2, -0.2, 0.3, -0.3, 0.4, -0.4, 0.6, -0.6)
USUAL = (
    *((16, 16),) * 9, *((8, 8),) * 2, *((12, 21), (21, 12), (13, 19), (19, 13), (14, 17), (17, 14)) * 2,
    (6, 11), (11, 6), (7, 10), (10, 7), (7, 9), (9, 7), (12, 12), (16, 12), (12, 16), (10, 10), (14, 14),
)  # fmt: skip
LEAST, MOST = 4, 24


@dataclass(frozen=True)
class Kinks:
    """Random kinks along random directions of some channels; `at` fixes where they lie."""

    channels: tuple[int, ...]
    count: int
    gain: float
    at: tuple[float, ...] = ()


PARTS = (
    (
        Kinks((A, COUNT), 500, 5.0), Kinks((B, COUNT), 500, 5.0),
        Kinks((DOWN,), 12, 60.0, NEAR), Kinks((RIGHT,), 12, 60.0, NEAR),
    ),
    (
        Kinks((ROW,), 60, 3.0), Kinks((COLUMN,), 60, 3.0),
        Kinks((DOWN,), 40, 6.0, NEARER), Kinks((RIGHT,), 40, 6.0, NEARER),
        Kinks((MEAN_ROW,), 110, 30.0), Kinks((MEAN_COLUMN,), 110, 30.0), Kinks((MEAN_ROW, MEAN_COLUMN), 560, 18.0),
        Kinks((MEAN_ROW, MEAN_COLUMN, COUNT), 44, 6.0),
    ),
    (
        Kinks((VIEW_ROW,), 300, 25.0), Kinks((VIEW_COLUMN,), 300, 25.0), Kinks((VIEW_ROW, *KINDS[1:]), 190, 12.0),
        Kinks((VIEW_COLUMN, *KINDS[1:]), 190, 12.0), Kinks(SCRATCH, 44, 0.3),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What a feed-forward part is shown for many tokens `[M, width]`, how much each counts, and what is true there."""

    inputs: Tensor
    weights: Tensor
    rows: Tensor
    columns: Tensor
    view_rows: Tensor
    view_columns: Tensor
    codes: Tensor


def write_places(transformer: FluxTransformer2DModel, scenes: Scenes, samples: int = 220) -> None:
    """Write all three double blocks; `samples` batches of noisy pictures are looked at for each."""
    rng, chance = Random(1), torch.Generator().manual_seed(0)
    with torch.no_grad():
        write_attention(transformer, scenes.directions)
        for number, targets in enumerate((first_targets, second_targets, third_targets)):
            seen = look(transformer, number, scenes, rng, samples)
            part: Any = transformer.transformer_blocks[number].ff
            place_kinks(part.net[0].proj, seen.inputs, PARTS[number], chance)
            wanted, channels = targets(seen)
            solve(part, seen, wanted, channels)


def clear(*layers: nn.Linear) -> None:
    """Zero weights and biases."""
    for layer in layers:
        layer.weight.zero_()
        layer.bias.zero_()


def write_attention(transformer: FluxTransformer2DModel, directions: Tensor) -> None:
    """Hand tokens in as they are, read places and means, and change nothing else."""
    width = transformer.x_embedder.out_features
    clear(transformer.x_embedder)
    transformer.x_embedder.weight.copy_(layout.NOISE_SCALE * torch.eye(width, layout.CHANNELS))
    transformer.x_embedder.bias[-layout.FILL :] = layout.filling()
    for number, block in enumerate(transformer.transformer_blocks):
        open_block(block, noise_too=number == 0)
    read_places(transformer.transformer_blocks[0].attn, directions, layout.spread(width))
    take_means(transformer.transformer_blocks[1].attn, layout.spread(width))


def open_block(block: Any, *, noise_too: bool) -> None:
    """Gates open, norms blind to the filling (and to noise and text where they are not wanted), attention empty."""
    for norm in (block.norm1, block.norm1_context):
        norm.linear.weight.zero_()
        norm.linear.bias.zero_()
        norm.linear.bias.view(6, -1)[[2, 5]] = 1.0
    block.norm1_context.linear.bias.view(6, -1)[[1, 4]] = -1.0
    scales = block.norm1.linear.bias.view(6, -1)
    scales[[1, 4], -layout.FILL :] = -1.0
    scales[4, layout.NOISE] = -1.0
    if not noise_too:
        scales[1, layout.NOISE] = -1.0
    attention = block.attn
    clear(attention.to_q, attention.to_k, attention.to_v, attention.to_out[0], block.ff.net[2], block.ff_context.net[2])
    clear(attention.add_q_proj, attention.add_k_proj, attention.add_v_proj, attention.to_add_out)


def read_places(attention: Any, directions: Tensor, spread: float) -> None:
    """Heads 0 and 1 ask for row and column, head 3 takes the noise's means and the count of tokens."""
    head = attention.to_q.out_features // attention.heads
    for number, axis, channel in ((0, ROW_AXIS, A), (1, COLUMN_AXIS, B)):
        first = number * head
        turning = first + axis + 2 * SLOW
        attention.to_q.bias[first] = 1.0
        attention.to_q.bias[turning] = 2 / 60**0.5  # exactly 2 after the query's norm, also in bf16
        attention.add_k_proj.bias[turning + 1] = 1.0  # a quarter turn ahead: the sine of the place
        attention.add_v_proj.bias[first] = LEVEL
        attention.to_out[0].weight[channel, first] = 1.0
    even = 3 * head
    attention.to_v.weight[even : even + 2, layout.NOISE] = 18 * spread / layout.NOISE_SCALE * directions.T
    attention.add_v_proj.bias[even + 2] = LEVEL
    for channel, value in ((DOWN, even), (RIGHT, even + 1), (COUNT, even + 2)):
        attention.to_out[0].weight[channel, value] = 1.0


def take_means(attention: Any, spread: float) -> None:
    """Head 0 attends evenly to the rows and columns that the first block named."""
    for value, (channel, mean) in enumerate(((ROW, MEAN_ROW), (COLUMN, MEAN_COLUMN))):
        attention.to_v.weight[value, channel] = spread
        attention.to_out[0].weight[mean, value] = 1.0


def canvases(rng: Random, count: int) -> Iterator[tuple[Grid, float]]:
    """Usual canvases and every other size; how much each counts."""
    for _ in range(count):
        grid = Grid(*rng.choice(USUAL))
        yield grid, 3.0 if grid == Grid(16, 16) else 1.0
    sizes = range(LEAST, MOST + 1)
    everything = [Grid(height, width) for height in sizes for width in sizes]
    for grid in rng.sample(everything, min(len(everything), 2 * count)):
        yield grid, 0.5


def look(transformer: FluxTransformer2DModel, number: int, scenes: Scenes, rng: Random, count: int) -> Seen:
    """Run noisy pictures up to a block's feed-forward part, sometimes in bf16, and note what it is shown."""
    parts, caught = [], []
    device = transformer.device
    hook = transformer.transformer_blocks[number].ff.register_forward_hook(
        lambda _part, inputs, _output: caught.append(inputs[0].float().cpu())
    )
    for grid, weight in canvases(rng, count):
        noise = clear_noise(scenes, grid, max(1, min(12, 512 // grid.tokens)))
        noisy, shifts = scenes.noisy(rng, grid, noise)
        if rng.random() < 0.4:
            with precision(device):
                run_double_blocks(transformer, noisy.to(device), grid)
        else:
            run_double_blocks(transformer, noisy.to(device), grid)
        parts.append(note(caught.pop(), weight, grid, shifts))
    hook.remove()
    return Seen(*(torch.cat(values) for values in zip(*parts, strict=True)))


def clear_noise(scenes: Scenes, grid: Grid, count: int) -> Tensor:
    """Noise `[B, T, 64]` that says plainly where the object lies, where there is any such."""
    noise = torch.randn(count, grid.tokens, layout.CHANNELS)
    plain = ((noise.mean(1) @ scenes.directions).abs() * grid.tokens**0.5 > CLEAR).all(1)
    return noise[plain] if plain.any() else noise


def note(inputs: Tensor, weight: float, grid: Grid, shifts: Tensor) -> tuple[Tensor, ...]:
    """The fields of `Seen` for one batch, flat over its tokens."""
    top, left = grid.corner
    shape = (len(shifts), grid.height, grid.width)
    rows = torch.arange(grid.height).float()[None, :, None].expand(shape)
    columns = torch.arange(grid.width).float()[None, None].expand(shape)
    down, right = shifts[:, 0, None, None].float(), shifts[:, 1, None, None].float()
    values = (torch.full(shape, weight), rows, columns, rows - top - down, columns - left - right)
    return (inputs.flatten(0, 1), *(v.flatten() for v in values), place_codes(grid, shifts).flatten(0, 1))


def run_double_blocks(transformer: FluxTransformer2DModel, noisy: Tensor, grid: Grid) -> None:
    """A pass that leaves out the single blocks; any text will do."""
    kept, width = transformer.single_transformer_blocks, transformer.config["joint_attention_dim"]
    transformer.single_transformer_blocks = nn.ModuleList()
    told = Conditions(
        torch.randn(len(noisy), 32, width, device=noisy.device), torch.randn(len(noisy), width, device=noisy.device)
    )
    positions = grid_positions(2 * grid.height, 2 * grid.width).to(noisy.device)
    try:
        velocity(transformer, noisy, told, torch.ones(len(noisy), device=noisy.device), positions)
    finally:
        transformer.single_transformer_blocks = kept


def place_kinks(layer: nn.Linear, inputs: Tensor, groups: tuple[Kinks, ...], chance: torch.Generator) -> None:
    """Write a layer's weights so that each output bends somewhere in the range of the inputs."""
    clear(layer)
    row = 0
    for group in groups:
        values = inputs[:, group.channels]
        spread = values.std(0).clamp_min(1e-6)
        direction = torch.randn(group.count, len(group.channels), generator=chance)
        direction /= direction.norm(dim=1, keepdim=True)
        gains = group.gain * (0.3 + 1.4 * torch.rand(group.count, 1, generator=chance))
        at = values[torch.randint(0, len(values), (group.count,), generator=chance)] / spread
        if group.at:
            at = torch.tensor(group.at).repeat(group.count)[: group.count, None]
        rows = slice(row, row + group.count)
        layer.weight[rows, group.channels] = (gains * direction / spread).to(layer.weight.device)
        layer.bias[rows] = -(gains * direction * at).sum(1).to(layer.bias.device)
        row += group.count


def solve(part: Any, seen: Seen, wanted: Tensor, channels: list[int]) -> None:
    """Write the second layer of a feed-forward part: weighted least squares with a small ridge."""
    first, second = part.net[0].proj, part.net[2]
    hidden = functional.gelu(first(seen.inputs.to(first.weight.device)).cpu(), approximate="tanh")
    hidden = torch.cat([hidden, torch.ones(len(hidden), 1)], 1).double()
    weighted = hidden * seen.weights[:, None].double()
    gram = weighted.T @ hidden
    gram += torch.diag(gram.diagonal() * 3e-6 + 1e-6 * len(hidden))
    found = torch.linalg.solve(gram, weighted.T @ wanted.double()).to(second.weight)
    second.weight[channels] = found[:-1].T
    second.bias[channels] = found[-1]


def first_targets(seen: Seen) -> tuple[Tensor, list[int]]:
    """Rows and columns, and the noise's means made steep."""
    spread = layout.spread(seen.inputs.shape[1])
    means = spread * seen.inputs[:, [DOWN, RIGHT]]
    steeper = (STEEP * means).clamp(-1, 1) - means
    return torch.cat([torch.stack([seen.rows, seen.columns], 1) / SCALE, steeper], 1), [ROW, COLUMN, DOWN, RIGHT]


def second_targets(seen: Seen) -> tuple[Tensor, list[int]]:
    """Rows and columns within the view, and which view it is."""
    within = torch.stack([seen.view_rows, seen.view_columns], 1) / SCALE
    return torch.cat([within, seen.codes[:, -len(SIDES) :]], 1), [VIEW_ROW, VIEW_COLUMN, *KINDS]


def third_targets(seen: Seen) -> tuple[Tensor, list[int]]:
    """The one-hot codes of rows and columns; the scratch channels are wiped."""
    spread = layout.spread(seen.inputs.shape[1])
    codes = seen.codes[:, : -len(SIDES)]
    wiped = -spread * seen.inputs[:, SCRATCH]
    return torch.cat([codes, wiped], 1), [*range(layout.ROWS, layout.KIND), *SCRATCH]
