"""Computed weights of the first four blocks, which give each token its position within the view as one-hot codes.

Learned by gradient, positions come late and never get sharp. Here they are exact from the start:

- In the first double block, every image token compares the two anchor tokens (`anchors`) along one slow rotary
  frequency (Su et al. 2021, arXiv:2104.09864) of the rows. Since anchors have position 0, the share of attention that
  each gets is a function of the token's row alone, whatever the canvas. A second head does the same for columns. A
  third attends evenly to the image and takes the noise's means, which say where the object lies (`placement`).
- In the second double block, a head that attends evenly takes the mean row and column: the canvas's height and width.
- The feed-forward parts of both and of the first two single blocks turn these into the view that the canvas shows, and
  then into one-hot codes, by ramps (`piecewise_linear`).

The text's content has no part in these blocks; text reaches the picture through the modulations.
"""

from dataclasses import replace
from math import cos, pi, sin, sqrt
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional

from schnell.engine.denoise import predict_velocity
from schnell_mini import anchors, layout
from schnell_mini.layers import clear, open_gate, read_channels
from schnell_mini.networks import as_velocity
from schnell_mini.piecewise_linear import SHARPNESS, FeedForward, Hinge, Ramp, write_feed_forward
from schnell_mini.placement import LARGEST_SIDE, SMALLEST_MOVED, VIEW_SIDES, Grid
from schnell_mini.sampling import start_drawings
from schnell_mini.text_models import as_embeddings

ROW, COLUMN, MEAN_ROW, MEAN_COLUMN = range(layout.SCRATCH, layout.SCRATCH + 4)
DOWN, RIGHT, DOWN_SIGN, RIGHT_SIGN, DOWN_BIT, RIGHT_BIT = range(layout.SCRATCH + 4, layout.SCRATCH + 10)
SIDES_REACHING = dict(zip(VIEW_SIDES[:-1], range(layout.SCRATCH + 10, layout.SCRATCH + 13), strict=True))
MOVED_DOWN, MOVED_RIGHT = layout.SCRATCH + 13, layout.SCRATCH + 14
VIEW_CHANNELS = {side: layout.FIRST_VIEW + number for number, side in enumerate(VIEW_SIDES)}

POSITION_BLOCKS = 2
#: The head of the first block that takes the noise's means.
NOISE_HEAD = 3
#: Where the rotary dimensions of rows and columns begin in a head, and which of their frequencies is read.
ROW_AXIS, COLUMN_AXIS, SLOW, FREQUENCIES, ROTARY_BASE = 8, 36, 5, 14, 10000.0
#: Weight of a query's first dimension, which says what kind of token a head attends to.
SELECTOR_GAIN = 6.0
LOGIT_AMPLITUDE = 0.106
#: Rows and columns are held divided by this, counted from the middle of the largest canvas.
POSITION_SCALE = 8.0
MIDDLE = (LARGEST_SIDE - 1) / 2
NOISE_GAIN = 5.0
KNOTS = (-10.5, -9.5, -8.0, -6.0, -3.0, 3.0, 6.0, 8.0, 9.5, 10.5)
BOUNDARY_SHIFT = 0.25
RAMP_WIDTH = 0.1
SIZE_RAMP_WIDTH = 0.02


def write_position_weights(transformer: FluxTransformer2DModel, directions: Tensor) -> None:
    """Write both double blocks and the first two single blocks.

    `directions` `[64, 2]` are those along which the noise's means decide the placement.
    """
    spread = layout.token_spread(transformer.x_embedder.out_features)
    views, codes = transformer.single_transformer_blocks[:POSITION_BLOCKS]
    with torch.no_grad():
        write_embedders(transformer)
        for number, block in enumerate(transformer.transformer_blocks):
            clear_double_block(block, reads_noise=number == 0)
        write_position_heads(transformer.transformer_blocks[0].attn, directions, spread)
        write_mean_head(transformer.transformer_blocks[1].attn, spread)
        hinges = fit_straightening(transformer, spread)
        write_feed_forward(double_feed_forward(transformer, 0, spread), noise_sign_ramps(), hinges)
        write_feed_forward(double_feed_forward(transformer, 1, spread), [*size_ramps(), *steeper_sign_ramps()])
        for block in (views, codes):
            open_gate(block.norm.linear)
        write_feed_forward(single_feed_forward(views, spread), view_ramps())
        write_feed_forward(single_feed_forward(codes, spread), position_ramps())


def write_embedders(transformer: FluxTransformer2DModel) -> None:
    """Pass noise and anchors on in their channels, and add the filler that fixes what norms divide by."""
    image, text = transformer.x_embedder, transformer.context_embedder
    clear(image, text)
    image.weight.copy_(layout.NOISE_SCALE * torch.eye(image.out_features, layout.TOKEN_CHANNELS))
    for channel in anchors.ANCHOR_CHANNELS:
        text.weight[channel, channel] = sqrt(text.out_features / text.in_features)
    for layer in (image, text):
        layer.bias[-layout.FILLER :] = layout.filler()


def clear_double_block(block: Any, *, reads_noise: bool) -> None:
    """Open the gates, zero attention and feed-forward parts, and let the norms pass on only what is used.

    That is the anchors' channels of text tokens, and all of an image token but filler and noise; attention may read the
    noise if `reads_noise`.
    """
    for norm in (block.norm1, block.norm1_context):
        clear(norm.linear)
        norm.linear.bias.view(6, -1)[[2, 5]] = 1.0
    text, image = (norm.linear.bias.view(6, -1) for norm in (block.norm1_context, block.norm1))
    text[[1, 4]] = -1.0
    text[1, list(anchors.ANCHOR_CHANNELS)] = 0.0
    image[[1, 4], -layout.FILLER :] = -1.0
    image[4, layout.NOISE] = -1.0
    if not reads_noise:
        image[1, layout.NOISE] = -1.0
    attention = block.attn
    clear(attention.to_q, attention.to_k, attention.to_v, attention.to_out[0], block.ff.net[2], block.ff_context.net[2])
    clear(attention.add_q_proj, attention.add_k_proj, attention.add_v_proj, attention.to_add_out)
    attention.norm_q.weight[0] = SELECTOR_GAIN


def attend_evenly(attention: Any, first: int) -> None:
    """Let the head at channel `first` attend to all image tokens alike, and to no text.

    Its first dimension decides, which no rotation changes: FLUX's first rotary axis is 0 for all tokens.
    """
    attention.to_q.bias[first] = 1.0
    attention.to_k.bias[first] = 1.0
    attention.add_k_proj.bias[first] = -1.0


def compare_anchors(attention: Any, first: int, axis: int, channel: int) -> None:
    """Let the head at channel `first` attend to the anchors alone, and write how it divides between them to `channel`.

    Queries hold a constant that the rotary embedding turns by the token's position along `axis`, so the difference of
    the anchors' logits is a sine of the position: 0 in the middle of the largest canvas. There the written value has
    the slope 1 / POSITION_SCALE.
    """
    frequency = ROTARY_BASE ** (-SLOW / FREQUENCIES)
    turned = first + axis + 2 * SLOW
    ahead = MIDDLE * frequency + pi / 2
    attention.to_q.bias[first] = 1.0
    attention.to_q.bias[turned] = 1.0
    attention.to_k.bias[first] = -1.0
    attention.add_k_proj.bias[first] = -1.0
    strength = 30.0
    unit = 1 / anchors.normed_anchor(attention.to_q.in_features)
    for number, anchor in enumerate(anchors.ANCHOR_CHANNELS):
        sign = 1 - 2 * number
        attention.add_k_proj.weight[first, anchor] = unit
        attention.add_k_proj.weight[turned, anchor] = sign * strength * LOGIT_AMPLITUDE * cos(ahead) * unit
        attention.add_k_proj.weight[turned + 1, anchor] = sign * strength * LOGIT_AMPLITUDE * sin(ahead) * unit
        attention.add_k_proj.weight[first + 1, anchor] = strength * unit
        attention.add_v_proj.weight[first, anchor] = sign * unit
    slope = sqrt(attention.to_q.out_features / attention.heads / 2) * LOGIT_AMPLITUDE * frequency
    attention.to_out[0].weight[channel, first] = 1 / (POSITION_SCALE * slope)


def write_position_heads(attention: Any, directions: Tensor, spread: float) -> None:
    """Heads 0 and 1 read row and column, `NOISE_HEAD` the noise's means along the two directions."""
    head = attention.to_q.out_features // attention.heads
    compare_anchors(attention, 0, ROW_AXIS, ROW)
    compare_anchors(attention, head, COLUMN_AXIS, COLUMN)
    even = NOISE_HEAD * head
    attend_evenly(attention, even)
    attention.to_v.weight[even : even + 2, layout.NOISE] = NOISE_GAIN * spread / layout.NOISE_SCALE * directions.T
    for value, channel in ((even, DOWN), (even + 1, RIGHT)):
        attention.to_out[0].weight[channel, value] = 1.0


def read_directions(transformer: FluxTransformer2DModel) -> Tensor:
    """The directions `[64, 2]` along which the noise's means decide the placement, from the head that reads them."""
    attention: Any = transformer.transformer_blocks[0].attn
    even = NOISE_HEAD * (attention.to_q.out_features // attention.heads)
    rows: Tensor = attention.to_v.weight[even : even + 2, layout.NOISE].detach().float()
    return functional.normalize(rows).T.contiguous()


@torch.no_grad()
def divide_means_by_time(transformer: FluxTransformer2DModel) -> None:
    """Let the gates of the noise's means be 1 / t, so that these are as large at low noise levels as in pure noise.

    Otherwise the ramps that take their signs find most of them undecided at a quarter of the noise. The time embedding
    has to be written already (`key_value_blocks.write_time`).
    """
    linear: Any = transformer.transformer_blocks[0].norm1.linear
    gate = 2 * linear.in_features
    for channel in (DOWN, RIGHT):
        linear.weight[gate + channel] = 0.0
        linear.weight[gate + channel, layout.TIME] = 1 / layout.TIME_SCALE
        linear.bias[gate + channel] = 0.0


def write_mean_head(attention: Any, spread: float) -> None:
    """Head 0 takes the mean row and column of all image tokens."""
    attend_evenly(attention, 0)
    for value, (channel, mean) in enumerate(((ROW, MEAN_ROW), (COLUMN, MEAN_COLUMN))):
        read_channels(attention.to_v.weight[value], [channel], torch.tensor([spread]))
        attention.to_out[0].weight[mean, value] = 1.0


def noise_sign_ramps() -> list[Ramp]:
    """The signs of the noise's means, 0 or 1, and between them where a mean is nearly 0."""
    return [Ramp({DOWN: 1.0}, -0.06, 0.06, {DOWN_SIGN: 1.0}), Ramp({RIGHT: 1.0}, -0.06, 0.06, {RIGHT_SIGN: 1.0})]


def steeper_sign_ramps() -> list[Ramp]:
    """The same signs, ten times as steep."""
    return [Ramp({DOWN_SIGN: 1.0}, 0.45, 0.55, {DOWN_BIT: 1.0}), Ramp({RIGHT_SIGN: 1.0}, 0.45, 0.55, {RIGHT_BIT: 1.0})]


def fit_straightening(transformer: FluxTransformer2DModel, spread: float) -> list[Hinge]:
    """Hinges that make what the heads write linear in row and column: least squares on the largest canvas.

    Reads the attention of block 0, which has to be written already.
    """
    inputs = spread * feed_forward_inputs(transformer, 0, Grid(LARGEST_SIDE, LARGEST_SIDE)).double()
    measured = (inputs - inputs[:, layout.ZERO :][:, :1]).view(LARGEST_SIDE, LARGEST_SIDE, -1)
    hinges = []
    for channel, levels in ((ROW, measured[:, 0, ROW]), (COLUMN, measured[0, :, COLUMN])):
        wanted = (torch.arange(LARGEST_SIDE).double() - MIDDLE) / POSITION_SCALE
        plain = [Hinge(channel, knot / POSITION_SCALE, 1.0 if knot > 0 else -1.0, {}) for knot in KNOTS]
        outputs = torch.stack([functional.gelu(SHARPNESS * p.sign * (levels - p.knot)) / SHARPNESS for p in plain], 1)
        found = torch.linalg.lstsq(outputs, wanted - levels).solution.tolist()
        hinges += [replace(hinge, adds={channel: weight}) for hinge, weight in zip(plain, found, strict=True)]
    return hinges


def size_ramps() -> list[Ramp]:
    """How many of the canvas's two sides have at least 16, 12 and 8 tokens."""
    return [
        Ramp({mean: 1.0}, start - SIZE_RAMP_WIDTH / 2, start + SIZE_RAMP_WIDTH / 2, {channel: 1.0})
        for side, channel in SIDES_REACHING.items()
        for mean in (MEAN_ROW, MEAN_COLUMN)
        for start in [((side - 1) / 2 - MIDDLE - 0.25) / POSITION_SCALE]
    ]


def view_ramps() -> list[Ramp]:
    """The view that the canvas shows, one-hot, and whether the noise moves it down and right."""
    ramps = [constant_ramp({VIEW_CHANNELS[VIEW_SIDES[-1]]: 1.0})]
    for (side, channel), smaller in zip(SIDES_REACHING.items(), VIEW_SIDES[1:], strict=True):
        ramps.append(Ramp({channel: 1.0}, 1.3, 1.7, {VIEW_CHANNELS[side]: 1.0, VIEW_CHANNELS[smaller]: -1.0}))
    moving = SIDES_REACHING[SMALLEST_MOVED]
    for bit, moved in ((DOWN_BIT, MOVED_DOWN), (RIGHT_BIT, MOVED_RIGHT)):
        ramps.append(Ramp({moving: 1.0, bit: 1.0}, 2.3, 2.7, {moved: 1.0}))
    return ramps


def position_ramps() -> list[Ramp]:
    """Row and column within the view, one-hot: a ramp between each two neighbours moves the 1 from one to the next."""
    ramps = [constant_ramp({layout.FIRST_ROW: 1.0, layout.FIRST_COLUMN: 1.0})]
    halves = {channel: side / 2 for side, channel in VIEW_CHANNELS.items()}
    for position, mean, moved, first in (
        (ROW, MEAN_ROW, MOVED_DOWN, layout.FIRST_ROW),
        (COLUMN, MEAN_COLUMN, MOVED_RIGHT, layout.FIRST_COLUMN),
    ):
        reads = {position: POSITION_SCALE, mean: -POSITION_SCALE, moved: -1.0, **halves}
        for number in range(1, VIEW_SIDES[0]):
            start = number - BOUNDARY_SHIFT - RAMP_WIDTH / 2
            end = number - BOUNDARY_SHIFT + RAMP_WIDTH / 2
            ramps.append(Ramp(reads, start, end, {first + number: 1.0, first + number - 1: -1.0}))
    return ramps


def constant_ramp(adds: dict[int, float]) -> Ramp:
    """A ramp that reads nothing and ended before 0: it always adds all of `adds`."""
    return Ramp({}, -2.0, -1.0, adds)


def double_feed_forward(transformer: FluxTransformer2DModel, number: int, spread: float) -> FeedForward:
    """The feed-forward part for image tokens of a double block."""
    part: Any = transformer.transformer_blocks[number].ff
    return FeedForward(part.net[0].proj, part.net[2], 0, spread)


def single_feed_forward(block: Any, spread: float) -> FeedForward:
    """The feed-forward part of a single block, whose output layer takes attention first."""
    return FeedForward(block.proj_mlp, block.proj_out, block.proj_out.out_features, spread)


def feed_forward_inputs(transformer: FluxTransformer2DModel, number: int, grid: Grid) -> Tensor:
    """What a double block's feed-forward part gets on a canvas without noise `[T, width]`."""
    caught: list[Tensor] = []
    part: Any = transformer.transformer_blocks[number].ff
    hook = part.register_forward_hook(lambda _part, inputs, _output: caught.append(inputs[0].float().cpu()))
    predict_without_text(transformer, torch.zeros(1, grid.tokens, layout.TOKEN_CHANNELS), grid)
    hook.remove()
    return caught[0][0]


def predict_without_text(transformer: FluxTransformer2DModel, noisy: Tensor, grid: Grid) -> Tensor:
    """The predicted velocity for tokens `[B, T, 64]` at noise level 1 and a text of the two anchors alone."""
    width = transformer.config["joint_attention_dim"]
    states = torch.zeros(len(noisy), len(anchors.ANCHOR_CHANNELS), width)
    for number, channel in enumerate(anchors.ANCHOR_CHANNELS):
        states[:, number, channel] = sqrt(width)
    pooled = torch.zeros(len(noisy), transformer.config["pooled_projection_dim"])
    prompts = as_embeddings(states.to(noisy), pooled.to(noisy))
    return predict_velocity(
        as_velocity(transformer), start_drawings(prompts, noisy, [(1.0, 0.0)] * len(noisy), grid.size)
    )
