"""The first blocks are written down: attention reads where a token lies, ramps name its place within the view.

Learned by gradient, places come last of all and never sharp. Here they are known from the start:

- T5 puts two anchors before every text, tokens that are always the same and lie at the origin. In the first block
  every image token asks for both along one slow rotary frequency (Su et al. 2021, arXiv:2104.09864) of the rows: which
  of the two gets more of its attention is a function of the row alone, whatever the canvas. The same for columns.
  A third head attends evenly to the image and takes the noise's means.
- In the second block an even head takes the mean row and column, and with it the canvas's height and width.
- Ramps turn these into sizes, then into one-hot codes of the place within the view.

Text's content stays out of these blocks; text reaches the picture through the modulations.
"""

from dataclasses import replace
from math import cos, pi, sin, sqrt
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional

from schnell_mini import anchors, layout
from schnell_mini.layers import clear, open_gate, read_channels
from schnell_mini.piecewise_linear import SHARPNESS, Line, Part, Ramp, write_part
from schnell_mini.placement import LARGEST, MOVING, SIDES, Grid
from schnell_mini.text_models import Conditions, grid_positions, velocity

ROW, COLUMN, MEAN_ROW, MEAN_COLUMN = range(layout.SCRATCH, layout.SCRATCH + 4)
DOWN, RIGHT, DOWN_SIGN, RIGHT_SIGN, DOWN_BIT, RIGHT_BIT = range(layout.SCRATCH + 4, layout.SCRATCH + 10)
REACHES = tuple(range(layout.SCRATCH + 10, layout.SCRATCH + 13))
MOVED_DOWN, MOVED_RIGHT = layout.SCRATCH + 13, layout.SCRATCH + 14
KINDS = {side: layout.KIND + number for number, side in enumerate(SIDES)}
ROUND = tuple(zip(SIDES[:-1], REACHES, strict=True))
ROW_AXIS, COLUMN_AXIS, SLOW, FREQUENCIES, BASE = 8, 36, 5, 14, 10000.0
PLACE_BLOCKS = 2
DEAF = 6.0
BEND = 0.106
UNIT = 8.0
MIDDLE = (LARGEST - 1) / 2
NOISE_GAIN = 5.0
KNOTS = (-10.5, -9.5, -8.0, -6.0, -3.0, 3.0, 6.0, 8.0, 9.5, 10.5)
EARLIER = 0.25
STEP = 0.1
NARROW = 0.02


def write_places(transformer: FluxTransformer2DModel, directions: Tensor) -> None:
    """Write both double blocks and the first two single blocks."""
    spread = layout.spread(transformer.x_embedder.out_features)
    sizes, codes = transformer.single_transformer_blocks[:PLACE_BLOCKS]
    with torch.no_grad():
        write_embedders(transformer)
        for number, block in enumerate(transformer.transformer_blocks):
            open_block(block, noise_too=number == 0)
        read_places(transformer.transformer_blocks[0].attn, directions, spread)
        take_means(transformer.transformer_blocks[1].attn, spread)
        write_part(double_part(transformer, 0, spread), first_signs(), straighten(transformer, spread))
        write_part(double_part(transformer, 1, spread), [*reach_sides(), *second_signs()])
        for block in (sizes, codes):
            open_gate(block.norm.linear)
        write_part(single_part(sizes, spread), name_sizes())
        write_part(single_part(codes, spread), name_places())


def write_embedders(transformer: FluxTransformer2DModel) -> None:
    """Hand noise and anchors in as they are, with the filling that makes norms blind to them."""
    image, text = transformer.x_embedder, transformer.context_embedder
    clear(image, text)
    image.weight.copy_(layout.NOISE_SCALE * torch.eye(image.out_features, layout.CHANNELS))
    for channel in anchors.CHANNELS:
        text.weight[channel, channel] = sqrt(text.out_features / text.in_features)
    for layer in (image, text):
        layer.bias[-layout.FILL :] = layout.filling()


def open_block(block: Any, *, noise_too: bool) -> None:
    """Gates open, norms blind to all but what is wanted, attention and feed-forward parts empty."""
    for norm in (block.norm1, block.norm1_context):
        clear(norm.linear)
        norm.linear.bias.view(6, -1)[[2, 5]] = 1.0
    text, image = (norm.linear.bias.view(6, -1) for norm in (block.norm1_context, block.norm1))
    text[[1, 4]] = -1.0
    text[1, list(anchors.CHANNELS)] = 0.0
    image[[1, 4], -layout.FILL :] = -1.0
    image[4, layout.NOISE] = -1.0
    if not noise_too:
        image[1, layout.NOISE] = -1.0
    attention = block.attn
    clear(attention.to_q, attention.to_k, attention.to_v, attention.to_out[0], block.ff.net[2], block.ff_context.net[2])
    clear(attention.add_q_proj, attention.add_k_proj, attention.add_v_proj, attention.to_add_out)
    attention.norm_q.weight[0] = DEAF


def attend_evenly(attention: Any, first: int) -> None:
    """The head at channel `first` sees every image token alike, and no text: its first, unturned dimension says so."""
    attention.to_q.bias[first] = 1.0
    attention.to_k.bias[first] = 1.0
    attention.add_k_proj.bias[first] = -1.0


def compare_anchors(attention: Any, first: int, axis: int, channel: int) -> None:
    """The head at channel `first` sees the anchors alone; their balance says the place along an axis.

    Where the place is the middle both get the same; the balance is written so that its slope there is 1 / UNIT.
    """
    frequency = BASE ** (-SLOW / FREQUENCIES)
    turned = first + axis + 2 * SLOW
    ahead = MIDDLE * frequency + pi / 2
    attention.to_q.bias[first] = 1.0
    attention.to_q.bias[turned] = 1.0
    attention.to_k.bias[first] = -1.0
    attention.add_k_proj.bias[first] = -1.0
    strength = 30.0
    heard = anchors.heard(attention.to_q.in_features)
    for number, anchor in enumerate(anchors.CHANNELS):
        sign = 1 - 2 * number
        attention.add_k_proj.weight[first, anchor] = 1 / heard
        attention.add_k_proj.weight[turned, anchor] = sign * strength * BEND * cos(ahead) / heard
        attention.add_k_proj.weight[turned + 1, anchor] = sign * strength * BEND * sin(ahead) / heard
        attention.add_k_proj.weight[first + 1, anchor] = strength / heard
        attention.add_v_proj.weight[first, anchor] = sign / heard
    steepness = sqrt(attention.to_q.out_features / attention.heads / 2) * BEND * frequency
    attention.to_out[0].weight[channel, first] = 1 / (UNIT * steepness)


def read_places(attention: Any, directions: Tensor, spread: float) -> None:
    """Heads 0 and 1 read row and column, head 3 the noise's means."""
    head = attention.to_q.out_features // attention.heads
    compare_anchors(attention, 0, ROW_AXIS, ROW)
    compare_anchors(attention, head, COLUMN_AXIS, COLUMN)
    even = 3 * head
    attend_evenly(attention, even)
    attention.to_v.weight[even : even + 2, layout.NOISE] = NOISE_GAIN * spread / layout.NOISE_SCALE * directions.T
    for value, channel in ((even, DOWN), (even + 1, RIGHT)):
        attention.to_out[0].weight[channel, value] = 1.0


def take_means(attention: Any, spread: float) -> None:
    """Head 0 takes the mean row and column."""
    attend_evenly(attention, 0)
    for value, (channel, mean) in enumerate(((ROW, MEAN_ROW), (COLUMN, MEAN_COLUMN))):
        read_channels(attention.to_v.weight[value], [channel], torch.tensor([spread]))
        attention.to_out[0].weight[mean, value] = 1.0


def first_signs() -> list[Ramp]:
    """Which way the noise's means point, still soft."""
    return [Ramp({DOWN: 1.0}, -0.06, 0.06, {DOWN_SIGN: 1.0}), Ramp({RIGHT: 1.0}, -0.06, 0.06, {RIGHT_SIGN: 1.0})]


def second_signs() -> list[Ramp]:
    """The same, steeper."""
    return [Ramp({DOWN_SIGN: 1.0}, 0.45, 0.55, {DOWN_BIT: 1.0}), Ramp({RIGHT_SIGN: 1.0}, 0.45, 0.55, {RIGHT_BIT: 1.0})]


def straighten(transformer: FluxTransformer2DModel, spread: float) -> list[Line]:
    """Lines that bend the anchors' balance, measured on the largest canvas, into rows and columns: least squares."""
    inputs = spread * hear(transformer, 0, Grid(LARGEST, LARGEST)).double()
    measured = (inputs - inputs[:, layout.ZERO :][:, :1]).view(LARGEST, LARGEST, -1)
    lines = []
    for channel, levels in ((ROW, measured[:, 0, ROW]), (COLUMN, measured[0, :, COLUMN])):
        wanted = (torch.arange(LARGEST).double() - MIDDLE) / UNIT
        plain = [Line(channel, knot / UNIT, 1.0 if knot > 0 else -1.0, {}) for knot in KNOTS]
        bends = torch.stack([functional.gelu(SHARPNESS * p.sign * (levels - p.at)) / SHARPNESS for p in plain], 1)
        found = torch.linalg.lstsq(bends, wanted - levels).solution.tolist()
        lines += [replace(line, adds={channel: weight}) for line, weight in zip(plain, found, strict=True)]
    return lines


def reach_sides() -> list[Ramp]:
    """How many of the canvas's two sides reach 16, 12 and 8 tokens."""
    return [
        Ramp({mean: 1.0}, start - NARROW / 2, start + NARROW / 2, {channel: 1.0})
        for side, channel in ROUND
        for mean in (MEAN_ROW, MEAN_COLUMN)
        for start in [((side - 1) / 2 - MIDDLE - 0.25) / UNIT]
    ]


def name_sizes() -> list[Ramp]:
    """The view that the canvas shows, and by how much the noise moves it, if it moves at all."""
    ramps = [always({KINDS[SIDES[-1]]: 1.0})]
    for (side, channel), smaller in zip(ROUND, SIDES[1:], strict=True):
        ramps.append(Ramp({channel: 1.0}, 1.3, 1.7, {KINDS[side]: 1.0, KINDS[smaller]: -1.0}))
    moving = dict(ROUND)[MOVING]
    for bit, moved in ((DOWN_BIT, MOVED_DOWN), (RIGHT_BIT, MOVED_RIGHT)):
        ramps.append(Ramp({moving: 1.0, bit: 1.0}, 2.3, 2.7, {moved: 1.0}))
    return ramps


def name_places() -> list[Ramp]:
    """One-hot codes of row and column within the view: one ramp between each two neighbours."""
    ramps = [always({layout.ROWS: 1.0, layout.COLUMNS: 1.0})]
    halves = {channel: side / 2 for side, channel in KINDS.items()}
    for place, mean, moved, first in (
        (ROW, MEAN_ROW, MOVED_DOWN, layout.ROWS),
        (COLUMN, MEAN_COLUMN, MOVED_RIGHT, layout.COLUMNS),
    ):
        reads = {place: UNIT, mean: -UNIT, moved: -1.0, **halves}
        for number in range(1, SIDES[0]):
            middle = number - EARLIER
            ramps.append(
                Ramp(reads, middle - STEP / 2, middle + STEP / 2, {first + number: 1.0, first + number - 1: -1.0})
            )
    return ramps


def always(adds: dict[int, float]) -> Ramp:
    """A ramp that ended before zero: a constant."""
    return Ramp({}, -2.0, -1.0, adds)


def double_part(transformer: FluxTransformer2DModel, number: int, spread: float) -> Part:
    """A double block's feed-forward part."""
    part: Any = transformer.transformer_blocks[number].ff
    return Part(part.net[0].proj, part.net[2], 0, spread)


def single_part(block: Any, spread: float) -> Part:
    """A single block's."""
    return Part(block.proj_mlp, block.proj_out, block.proj_out.out_features, spread)


def hear(transformer: FluxTransformer2DModel, number: int, grid: Grid) -> Tensor:
    """What a double block's feed-forward part is shown on an empty canvas `[T, width]`."""
    caught: list[Tensor] = []
    part: Any = transformer.transformer_blocks[number].ff
    hook = part.register_forward_hook(lambda _part, inputs, _output: caught.append(inputs[0].float().cpu()))
    run(transformer, torch.zeros(1, grid.tokens, layout.CHANNELS), grid)
    hook.remove()
    return caught[0][0]


def run(transformer: FluxTransformer2DModel, noisy: Tensor, grid: Grid) -> Tensor:
    """The transformer's answer at t = 1 for a text of which it hears only the anchors."""
    width = transformer.config["joint_attention_dim"]
    tokens = torch.zeros(len(noisy), len(anchors.CHANNELS), width)
    for number, channel in enumerate(anchors.CHANNELS):
        tokens[:, number, channel] = sqrt(width)
    told = Conditions(tokens.to(noisy), torch.zeros(len(noisy), transformer.config["pooled_projection_dim"]).to(noisy))
    positions = grid_positions(2 * grid.height, 2 * grid.width).to(noisy)
    return velocity(transformer, noisy, told, torch.ones(len(noisy)).to(noisy), positions)
