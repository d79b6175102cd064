"""Three single blocks with computed weights, which turn positions and codes into a picture: the linear part of it.

Feed-forward layers work as key-value memories (Geva et al. 2021, arXiv:2012.14913). Here each hidden unit belongs to
one position of one view. Its key is that position's one-hot code, without which GELU gives zero, plus one direction of
the appearance codes; its value is what that direction adds to the token. The first of the blocks computes how much of
the background is visible, and its gate multiplies that with the background's code. The others compute the object. The
last layer adds up the velocity v = (x_t - x_0) / t.

Units are chosen by the singular values of `TokenMaps`. What they leave out is learned by the drawing blocks behind.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional

from schnell_mini import layout
from schnell_mini.adapter_block import write_adapter_block
from schnell_mini.appearance_codes import BackgroundCodes, TokenMaps
from schnell_mini.layers import clear, open_gate, read_channels
from schnell_mini.placement import VIEW_SIDES
from schnell_mini.position_weights import POSITION_BLOCKS

KEY_VALUE_BLOCKS = 3
#: An active unit's argument when its direction reads 0: so high that GELU is nearly the identity around it.
ACTIVE = 4.0
#: What each of a position's three codes adds to the argument: with one of them missing it is -10, where GELU gives 0.
KEY_GAIN = 14.0
BACKGROUND_SCALE = 0.3
#: Each view's share of the units that compute objects.
UNIT_SHARES = {16: 0.573, 12: 0.257, 8: 0.111, 6: 0.059}
STEP_TIMES = (1.0, 3 / 4, 1 / 2, 1 / 4, 2 / 3, 1 / 3)


@dataclass(frozen=True)
class KeyValueUnit:
    """A hidden unit: its view (by side) and position there, the direction of codes it reads `[K]`, what it adds `[D]`.

    Without a direction it adds a constant.
    """

    side: int
    position: int
    reads: Tensor | None
    adds: Tensor


#: The units of each key-value block, in the blocks' order.
Units = tuple[tuple[KeyValueUnit, ...], ...]


def choose_units(linear: Tensor, constant: Tensor, side: int, count: int) -> list[KeyValueUnit]:
    """Units for `y = linear z + constant` at each position (`[T, D, K]`, `[T, D]`): the strongest directions of all.

    `count` units, among them one constant for each position.
    """
    parts = torch.linalg.svd(linear, full_matrices=False)
    order = parts.S.flatten().argsort(descending=True)[: max(0, count - len(linear))].tolist()
    return with_constants(parts, constant, side, [divmod(number, parts.S.shape[1]) for number in order])


def choose_units_each(linear: Tensor, constant: Tensor, side: int) -> list[KeyValueUnit]:
    """Units for the same map: the strongest direction and one constant for every position."""
    parts = torch.linalg.svd(linear, full_matrices=False)
    return with_constants(parts, constant, side, [(position, 0) for position in range(len(linear))])


def with_constants(parts: Any, constant: Tensor, side: int, chosen: list[tuple[int, int]]) -> list[KeyValueUnit]:
    """Units for the chosen (position, rank) of a singular value decomposition, and each position's constant.

    A unit that reads a direction adds `ACTIVE` times its value too much, which the constant takes back.
    """
    rest, units = constant.clone(), []
    for position, rank in chosen:
        adds = parts.U[position, :, rank] * parts.S[position, rank]
        units.append(KeyValueUnit(side, position, parts.Vh[position, rank], adds))
        rest[position] -= adds * ACTIVE
    return units + [KeyValueUnit(side, number, None, one / ACTIVE) for number, one in enumerate(rest)]


def plan_units(maps: dict[int, TokenMaps], blocks: int, hidden: int) -> Units:
    """Divide the hidden units of all key-value blocks (`hidden` each) among views and positions."""
    background: list[KeyValueUnit] = []
    objects: list[KeyValueUnit] = []
    room = (blocks - 1) * hidden
    for side in VIEW_SIDES:
        view = maps[side]
        background += choose_units_each(view.visibility, view.visibility_mean, side)
        objects += choose_units(view.object, view.object_mean, side, int(UNIT_SHARES[side] * room))
    return (tuple(background), *(tuple(objects[first :: blocks - 1]) for first in range(blocks - 1)))


def find_key_value_blocks(transformer: FluxTransformer2DModel) -> list[Any]:
    """The single blocks behind those of the position weights."""
    return list(transformer.single_transformer_blocks)[POSITION_BLOCKS : POSITION_BLOCKS + KEY_VALUE_BLOCKS]


def write_key_value_blocks(transformer: FluxTransformer2DModel, units: Units, background: BackgroundCodes) -> None:
    """Write the key-value blocks, the adapter block, the time embedding, and the last layer."""
    with torch.no_grad():
        for number, (block, own) in enumerate(zip(find_key_value_blocks(transformer), units, strict=True)):
            write_modulation(block.norm.linear, is_background=number == 0)
            write_keys(block.proj_mlp, own)
            write_values(block.proj_out, own, is_background=number == 0)
        write_adapter_block(transformer.single_transformer_blocks[-1])
        write_time(transformer)
        write_last_layer(transformer, background)


def write_modulation(linear: nn.Linear, *, is_background: bool) -> None:
    """Put the appearance codes into channels (`layout.code_channels`) whose own content the norm's scale of 0 removes.

    In the background's block, the gates of its channels are the background codes.
    """
    width = linear.in_features
    open_gate(linear)
    unit, offset = 1 / layout.CODE_SPREAD, -layout.CODE_OFFSET / layout.CODE_SPREAD
    scale = linear.bias[width : 2 * width]
    for code, channel in enumerate(layout.code_channels(layout.APPEARANCE_CODES)):
        linear.weight[channel, code] = unit
        linear.bias[channel] = offset
        scale[channel] = -1.0
    scale[layout.BACKGROUND] = -1.0
    scale[-layout.FILLER :] = -1.0
    if is_background:
        for channel in range(layout.BACKGROUND.start, layout.BACKGROUND.stop):
            code = layout.APPEARANCE_CODES + (channel - layout.BACKGROUND.start) % layout.BACKGROUND_CODES
            linear.weight[2 * width + channel, code] = unit
            linear.bias[2 * width + channel] = offset


def write_keys(layer: nn.Linear, units: tuple[KeyValueUnit, ...]) -> None:
    """Let each unit be active at its position alone, where it reads its direction; units left over stay off."""
    channels = layout.code_channels(layout.APPEARANCE_CODES)
    layer.weight.normal_(std=0.01)
    layer.weight[:, channels] = 0.0
    layer.bias.fill_(-2.0)
    gain = KEY_GAIN * layout.token_spread(layer.in_features)
    for row, unit in enumerate(units):
        layer.weight[row] = 0.0
        position = position_channels(unit)
        read_channels(layer.weight[row], position, torch.full((len(position),), gain))
        layer.bias[row] = ACTIVE - 3 * KEY_GAIN
        if unit.reads is not None:
            layer.weight[row, channels] = unit.reads


def position_channels(unit: KeyValueUnit) -> list[int]:
    """The channels of a unit's position, of which three are 1 there: row, column, view.

    The last row and column of a small view also own the codes beyond them.
    """
    channels = [layout.FIRST_VIEW + VIEW_SIDES.index(unit.side)]
    for first, number in zip((layout.FIRST_ROW, layout.FIRST_COLUMN), divmod(unit.position, unit.side), strict=True):
        last = VIEW_SIDES[0] if number == unit.side - 1 else number + 1
        channels += range(first + number, first + last)
    return channels


def write_values(layer: nn.Linear, units: tuple[KeyValueUnit, ...], *, is_background: bool) -> None:
    """Write what each unit adds; attention adds nothing."""
    clear(layer)
    for row, unit in enumerate(units):
        set_value(layer, row, unit.adds, is_background=is_background)


def set_value(layer: nn.Linear, row: int, adds: Tensor, *, is_background: bool) -> None:
    """Write one unit's value into the channels of background or object."""
    column = layer.out_features + row
    if is_background:
        repeated = adds.repeat_interleave(layout.BACKGROUND_CODES).to(layer.weight)
        layer.weight[layout.BACKGROUND, column] = BACKGROUND_SCALE * repeated
    else:
        layer.weight[layout.OBJECT, column] = -layout.NOISE_SCALE * adds.to(layer.weight)


def write_time(transformer: FluxTransformer2DModel) -> None:
    """Make one channel of the time embedding 8 / t by least squares, which weigh the times of one to four steps most.

    Copies of the samples with rounded and with disturbed features make it hold in bfloat16 as well.
    """
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
    found = torch.linalg.solve(gram, weighted.sum(0) * layout.TIME_SCALE).to(embedder.linear_2.weight)
    embedder.linear_2.weight.zero_()
    embedder.linear_2.bias.zero_()
    embedder.linear_2.weight[layout.TIME] = found[:-1]
    embedder.linear_2.bias[layout.TIME] = found[-1]


def write_last_layer(transformer: FluxTransformer2DModel, background: BackgroundCodes) -> None:
    """Make the last norm multiply by 1 / t; undo all scales; turn background codes into latents."""
    linear, out = transformer.norm_out.linear, transformer.proj_out
    width = linear.in_features
    spread = layout.token_spread(width)
    clear(linear, out)
    used = [*range(layout.BACKGROUND.stop), *range(layout.OBJECT.start, layout.OBJECT.stop), layout.ZERO]
    linear.bias[used] = -1.0
    linear.weight[used, layout.TIME] = 1 / layout.TIME_SCALE
    linear.bias[width - layout.FILLER : width] = -1.0
    for channels in (layout.NOISE, layout.OBJECT):
        out.weight[:, channels] = torch.eye(layout.TOKEN_CHANNELS) * spread / layout.NOISE_SCALE
    patterns = -background.patterns * spread / BACKGROUND_SCALE
    for part in range(4):
        first = layout.BACKGROUND.start + part * layout.BACKGROUND_CODES
        out.weight[part::4, first : first + layout.BACKGROUND_CODES] = patterns.T.to(out.weight)
    out.weight[:, layout.ZERO] = -out.weight.sum(1)


@torch.no_grad()
def keep_off_directions(transformer: FluxTransformer2DModel, directions: Tensor) -> None:
    """Let no drawn picture show anything along the noise directions `[64, 2]`, which decide placement.

    Then a half-drawn picture says of its placement what its noise said, at every level and with every LoRA. Pictures
    hold a thousandth of their variance there.
    """
    out = transformer.proj_out
    drawn = [*range(layout.BACKGROUND.start, layout.BACKGROUND.stop), *range(layout.OBJECT.start, layout.OBJECT.stop)]
    out.weight[:, drawn] -= directions @ (directions.T @ out.weight[:, drawn])
    out.weight[:, layout.ZERO] = 0.0
    out.weight[:, layout.ZERO] = -out.weight.sum(1)
