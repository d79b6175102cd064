"""The autoencoder as a list of tensors: its names in every file, its configuration from the shapes, and what follows.

Names are diffusers' (today's and those of its attention before 2023) or Black Forest Labs', which Stable Diffusion's
first code had, too.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

Shape = tuple[int, ...]

#: Parts of Black Forest Labs' names, and of diffusers' older ones, in today's of diffusers.
_PARTS: Final = (
    (re.compile(r"\.mid\.block_([12])\."), lambda found: f".mid_block.resnets.{int(found[1]) - 1}."),
    (re.compile(r"\.mid\.attn_1\.norm\."), ".mid_block.attentions.0.group_norm."),
    (re.compile(r"\.mid\.attn_1\.([qkv])\."), r".mid_block.attentions.0.to_\1."),
    (re.compile(r"\.mid\.attn_1\.proj_out\."), ".mid_block.attentions.0.to_out.0."),
    (
        re.compile(r"\.attentions\.0\.(q)uery\.|\.attentions\.0\.(k)ey\.|\.attentions\.0\.(v)alue\."),
        r".attentions.0.to_\1\2\3.",
    ),
    (re.compile(r"\.attentions\.0\.proj_attn\."), ".attentions.0.to_out.0."),
    (re.compile(r"\.down\.(\d+)\.block\.(\d+)\."), r".down_blocks.\1.resnets.\2."),
    (re.compile(r"\.down\.(\d+)\.downsample\."), r".down_blocks.\1.downsamplers.0."),
    (re.compile(r"\.nin_shortcut\."), ".conv_shortcut."),
    (re.compile(r"^(encoder|decoder)\.norm_out\."), r"\1.conv_norm_out."),
)
_UP: Final = re.compile(r"\.up\.(\d+)\.(block\.(\d+)|upsample)\.")


def autoencoder_name(name: str, levels: int) -> str:
    """diffusers' name of a parameter, from any naming. `levels` is the number of sizes that the network has."""

    def up_level(found: re.Match[str]) -> str:
        # Black Forest Labs count the decoder's levels from the picture, diffusers from the latents
        part = "upsamplers.0" if found[3] is None else f"resnets.{found[3]}"
        return f".up_blocks.{levels - 1 - int(found[1])}.{part}."

    name = _UP.sub(up_level, name)
    for pattern, replacement in _PARTS:
        name = pattern.sub(replacement, name)
    return name


def describe_autoencoder(shapes: Mapping[str, Shape]) -> Mapping[str, Any]:
    """The autoencoder's `config.json`, as diffusers writes it."""
    # the encoder's levels have the same numbers in every naming
    shapes = {autoencoder_name(name, 0): shape for name, shape in shapes.items()}
    levels = 1 + max(_numbers(shapes, r"encoder\.down_blocks\.(\d+)\."))
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [
            shapes[f"encoder.down_blocks.{index}.resnets.0.conv1.weight"][0] for index in range(levels)
        ],
        "layers_per_block": 1 + max(_numbers(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "norm_num_groups": 32,
        "act_fn": "silu",
        "mid_block_add_attention": any(".attentions." in name for name in shapes),
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    }


def _numbers(shapes: Mapping[str, Shape], pattern: str) -> list[int]:
    # none: a network that lacks its first level, of which the first tensor that is looked for is missed
    return [int(found[1]) for name in shapes if (found := re.match(pattern, name))] or [0]


def autoencoder_tensors(config: Mapping[str, Any], found: Mapping[str, Shape]) -> Iterator[tuple[str, Shape]]:
    """The tensors of an autoencoder with this configuration, under the names and in the forms that `found` has."""
    shown = {autoencoder_name(name, len(config["block_out_channels"])): name for name in found}
    for name, shape in _tensors(config):
        there = shown.get(name, name)
        # attention's layers are stored as matrices or as 1x1 convolutions
        is_convolution = ".attentions." in name and len(found.get(there, ())) == 4
        yield there, (*shape, 1, 1) if is_convolution else shape


def _tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    widths, latent = list(config["block_out_channels"]), config["latent_channels"]
    yield from _convolution("encoder.conv_in", widths[0], config["in_channels"])
    yield from _levels("encoder.down_blocks", [widths[0], *widths], config["layers_per_block"], "downsamplers")
    yield from _ends("encoder", config, widths[-1], widths[-1], 2 * latent)
    yield from _convolution("decoder.conv_in", widths[-1], latent)
    upwards = [widths[-1], *reversed(widths)]
    yield from _levels("decoder.up_blocks", upwards, config["layers_per_block"] + 1, "upsamplers")
    yield from _ends("decoder", config, widths[-1], widths[0], config["out_channels"])
    if config["use_quant_conv"]:
        yield from _convolution("quant_conv", 2 * latent, 2 * latent, 1)
    if config["use_post_quant_conv"]:
        yield from _convolution("post_quant_conv", latent, latent, 1)


def _convolution(name: str, outputs: int, inputs: int, side: int = 3) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs, side, side)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _block(name: str, before: int, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.norm1", before)
    yield from _convolution(f"{name}.conv1", width, before)
    yield from _norm(f"{name}.norm2", width)
    yield from _convolution(f"{name}.conv2", width, width)
    if before != width:
        yield from _convolution(f"{name}.conv_shortcut", width, before, 1)


def _levels(name: str, widths: list[int], blocks: int, resize: str) -> Iterator[tuple[str, Shape]]:
    for index, (before, width) in enumerate(pairwise(widths)):
        for number in range(blocks):
            yield from _block(f"{name}.{index}.resnets.{number}", width if number else before, width)
        if index < len(widths) - 2:  # the last level keeps its size
            yield from _convolution(f"{name}.{index}.{resize}.0.conv", width, width)


def _ends(half: str, config: Mapping[str, Any], middle: int, last: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    """The middle block and the output layers of encoder or decoder."""
    for number in range(2):
        yield from _block(f"{half}.mid_block.resnets.{number}", middle, middle)
    if config["mid_block_add_attention"]:
        attention = f"{half}.mid_block.attentions.0"
        yield from _norm(f"{attention}.group_norm", middle)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            yield f"{attention}.{part}.weight", (middle, middle)
            yield f"{attention}.{part}.bias", (middle,)
    yield from _norm(f"{half}.conv_norm_out", last)
    yield from _convolution(f"{half}.conv_out", outputs, last)
