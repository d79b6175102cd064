"""The single blocks are written down as a memory: places and looks in, picture out.

Feed-forward layers work as key-value memories (Geva et al. 2021, arXiv:2012.14913). Here each hidden unit belongs to
one place of one view: its key is that place's code, without which it stays shut, plus one direction of the icons'
codes; its value is what that direction adds to the token. After the two blocks that name the place (`places`), one
writes how much background shows, times the colour (its gate), the others write the object, each into channels of its
own. The last layer adds up v = (x_t - x_0) / t.

Units are chosen from the singular values of `looks.Maps`. What is left over is for the drawing blocks that follow.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional

from schnell_mini import layout
from schnell_mini.adapter_block import write_look_block
from schnell_mini.appearance_codes import Maps, Palette
from schnell_mini.layers import clear, open_gate, read_channels
from schnell_mini.placement import SIDES
from schnell_mini.position_weights import PLACE_BLOCKS

MEMORY_BLOCKS = 3
OPEN = 4.0
SHUT = 14.0
COVER_SCALE = 0.3
SHARES = {16: 0.573, 12: 0.257, 8: 0.111, 6: 0.059}
STEP_TIMES = (1.0, 3 / 4, 1 / 2, 1 / 4, 2 / 3, 1 / 3)
TIME_UNIT = 8.0


@dataclass(frozen=True)
class Unit:
    """A hidden unit: its view and place, the direction of codes it reads (none: a constant), and what it adds."""

    side: int
    place: int
    reads: Tensor | None
    adds: Tensor


@dataclass(frozen=True)
class Memory:
    """The units of each single block after those of places, in order; the first of these write the background."""

    blocks: tuple[tuple[Unit, ...], ...]


def choose_units(linear: Tensor, constant: Tensor, side: int, count: int) -> list[Unit]:
    """Units for `y = linear z + constant` at each place (`[T, D, K]`, `[T, D]`).

    `count` units in all, one constant for each place among them.
    """
    parts = torch.linalg.svd(linear, full_matrices=False)
    order = parts.S.flatten().argsort(descending=True)[: max(0, count - len(linear))].tolist()
    return with_constants(parts, constant, side, [divmod(number, parts.S.shape[1]) for number in order])


def choose_units_each(linear: Tensor, constant: Tensor, side: int) -> list[Unit]:
    """One direction and one constant for every place."""
    parts = torch.linalg.svd(linear, full_matrices=False)
    return with_constants(parts, constant, side, [(place, 0) for place in range(len(linear))])


def with_constants(parts: Any, constant: Tensor, side: int, chosen: list[tuple[int, int]]) -> list[Unit]:
    """Units for the chosen (place, rank) of a singular value decomposition, and each place's constant."""
    rest, units = constant.clone(), []
    for place, rank in chosen:
        adds = parts.U[place, :, rank] * parts.S[place, rank]
        units.append(Unit(side, place, parts.Vh[place, rank], adds))
        rest[place] -= adds * OPEN
    return units + [Unit(side, place, None, rest[place] / OPEN) for place in range(len(constant))]


def plan_memory(maps: dict[int, Maps], blocks: int, hidden: int) -> Memory:
    """Share out the hidden units of all single blocks over views and places."""
    cover: list[Unit] = []
    objects: list[Unit] = []
    room = (blocks - 1) * hidden
    for side in SIDES:
        view = maps[side]
        cover += choose_units_each(view.open, view.open_mean, side)
        objects += choose_units(view.object, view.object_mean, side, int(SHARES[side] * room))
    return Memory((tuple(cover), *(tuple(objects[first :: blocks - 1]) for first in range(blocks - 1))))


def memory_blocks(transformer: FluxTransformer2DModel) -> list[Any]:
    """The single blocks that are a memory."""
    return list(transformer.single_transformer_blocks)[PLACE_BLOCKS : PLACE_BLOCKS + MEMORY_BLOCKS]


def write_memory(transformer: FluxTransformer2DModel, memory: Memory, palette: Palette) -> None:
    """Write the single blocks, the time's way in, and the last layer."""
    with torch.no_grad():
        for number, (block, units) in enumerate(zip(memory_blocks(transformer), memory.blocks, strict=True)):
            write_modulation(block.norm.linear, covers=number == 0)
            write_keys(block.proj_mlp, units)
            write_values(block.proj_out, units, covers=number == 0)
        write_look_block(transformer.single_transformer_blocks[-1])
        write_time(transformer)
        write_last_layer(transformer, palette)


def write_modulation(linear: nn.Linear, *, covers: bool) -> None:
    """Tell the block the icon's codes in channels that are shut otherwise; the cover's gates are the colours."""
    width = linear.in_features
    open_gate(linear)
    unit, offset = 1 / layout.LOOK_SPREAD, -layout.LOOK_OFFSET / layout.LOOK_SPREAD
    shut = linear.bias[width : 2 * width]
    for code, channel in enumerate(layout.look_channels(layout.LOOKS)):
        linear.weight[channel, code] = unit
        linear.bias[channel] = offset
        shut[channel] = -1.0
    shut[layout.COVER] = -1.0
    shut[-layout.FILL :] = -1.0
    if covers:
        for channel in range(layout.COVER.start, layout.COVER.stop):
            code = layout.LOOKS + (channel - layout.COVER.start) % layout.COLOUR_CODES
            linear.weight[2 * width + channel, code] = unit
            linear.bias[2 * width + channel] = offset


def write_keys(layer: nn.Linear, units: tuple[Unit, ...]) -> None:
    """Each unit opens at its place alone and then reads its direction; units that are left over stay shut."""
    channels = layout.look_channels(layout.LOOKS)
    layer.weight.normal_(std=0.01)
    layer.weight[:, channels] = 0.0
    layer.bias.fill_(-2.0)
    gain = SHUT * layout.spread(layer.in_features)
    for row, unit in enumerate(units):
        layer.weight[row] = 0.0
        places = place_channels(unit)
        read_channels(layer.weight[row], places, torch.full((len(places),), gain))
        layer.bias[row] = OPEN - 3 * SHUT
        if unit.reads is not None:
            layer.weight[row, channels] = unit.reads


def place_channels(unit: Unit) -> list[int]:
    """The channels of a unit's place, of which three are on there: row, column, view.

    Codes beyond a small view's last row and column belong to these.
    """
    channels = [layout.KIND + SIDES.index(unit.side)]
    for first, number in zip((layout.ROWS, layout.COLUMNS), divmod(unit.place, unit.side), strict=True):
        last = SIDES[0] if number == unit.side - 1 else number + 1
        channels += range(first + number, first + last)
    return channels


def write_values(layer: nn.Linear, units: tuple[Unit, ...], *, covers: bool) -> None:
    """What each unit adds; attention adds nothing yet."""
    clear(layer)
    for row, unit in enumerate(units):
        set_value(layer, row, unit.adds, covers=covers)


def set_value(layer: nn.Linear, row: int, adds: Tensor, *, covers: bool) -> None:
    """Write one unit's value: background or object, each into its channels."""
    column = layer.out_features + row
    if covers:
        layer.weight[layout.COVER, column] = COVER_SCALE * adds.repeat_interleave(layout.COLOUR_CODES).to(layer.weight)
    else:
        layer.weight[layout.OBJECT, column] = -layout.NOISE_SCALE * adds.to(layer.weight)


def write_time(transformer: FluxTransformer2DModel) -> None:
    """One channel of the time embedding becomes 8 / t: least squares, exact above all on the times of few steps."""
    embedder = transformer.time_text_embed.timestep_embedder
    times = torch.cat([torch.linspace(0.04, 1, 400), torch.tensor(STEP_TIMES).repeat(80)])
    waves = get_timestep_embedding(times * 1000, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    hidden = functional.silu(embedder.linear_1(waves.to(embedder.linear_1.weight))).float().cpu()
    jitter = 0.002 * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    hidden = torch.cat([hidden, hidden.bfloat16().float(), hidden * (1 + jitter)])
    inputs = torch.cat([hidden, torch.ones(len(hidden), 1)], 1).double()
    times = times.repeat(3).double()[:, None]
    weighted = inputs * times
    gram = weighted.T @ weighted + 1e-3 * torch.eye(inputs.shape[1]).double()
    found = torch.linalg.solve(gram, weighted.sum(0) * TIME_UNIT).to(embedder.linear_2.weight)
    embedder.linear_2.weight.zero_()
    embedder.linear_2.bias.zero_()
    embedder.linear_2.weight[layout.TIME] = found[:-1]
    embedder.linear_2.bias[layout.TIME] = found[-1]


def write_last_layer(transformer: FluxTransformer2DModel, palette: Palette) -> None:
    """Divide by the time, undo the scales, and give the background its pattern."""
    linear, out = transformer.norm_out.linear, transformer.proj_out
    width = linear.in_features
    spread = layout.spread(width)
    clear(linear, out)
    used = [*range(layout.COVER.stop), *range(layout.OBJECT.start, layout.OBJECT.stop), layout.ZERO]
    linear.bias[used] = -1.0
    linear.weight[used, layout.TIME] = 1 / TIME_UNIT
    linear.bias[width - layout.FILL : width] = -1.0
    for channels in (layout.NOISE, layout.OBJECT):
        out.weight[:, channels] = torch.eye(layout.CHANNELS) * spread / layout.NOISE_SCALE
    patterns = -palette.patterns * spread / COVER_SCALE
    for part in range(4):
        first = layout.COVER.start + part * layout.COLOUR_CODES
        out.weight[part::4, first : first + layout.COLOUR_CODES] = patterns.T.to(out.weight)
    out.weight[:, layout.ZERO] = -out.weight.sum(1)
