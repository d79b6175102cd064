"""The expected size of every linear layer that an adapter can target, from the model's shape."""

import re
from typing import Final

from schnell.adapters.names import Component
from schnell.adapters.shape import (TIME_CHANNELS, LinearSize, ModelShape)

_BLOCK: Final = re.compile(r"^(transformer_blocks|single_transformer_blocks|encoder\.layers|encoder\.block)\.\d+\.")


def expected_size(shape: ModelShape, component: Component, module: str) -> LinearSize | None:
    """The size of a diffusers or transformers module in a model of this shape; None where it has none."""
    match component:
        case "transformer":
            return _transformer_size(shape, module)
        case "text_encoder":
            return _clip_size(shape, module)
        case "text_encoder_2":
            return _t5_size(shape, module)


def block_count(shape: ModelShape, family: str) -> int:
    """How many blocks the model has in the list `family` (`transformer_blocks`, `encoder.layers`, …)."""
    return {
        "transformer_blocks": shape.double_blocks,
        "single_transformer_blocks": shape.single_blocks,
        "encoder.layers": shape.clip.layers,
        "encoder.block": shape.t5.layers,
    }[family]


def _transformer_size(shape: ModelShape, module: str) -> LinearSize | None:
    width = shape.width
    block = _BLOCK.match(module)
    if block is None:
        return _outer_size(shape, module)
    tail = module[block.end() :]
    if tail.startswith("attn."):
        return LinearSize(width, width)
    single = block[1] == "single_transformer_blocks"
    return {
        "norm.linear": LinearSize(3 * width, width),
        "norm1.linear": LinearSize(6 * width, width),
        "norm1_context.linear": LinearSize(6 * width, width),
        "proj_mlp": LinearSize(4 * width, width),
        "proj_out": LinearSize(width, 5 * width) if single else None,
        "ff.net.0.proj": LinearSize(4 * width, width),
        "ff.net.2": LinearSize(width, 4 * width),
        "ff_context.net.0.proj": LinearSize(4 * width, width),
        "ff_context.net.2": LinearSize(width, 4 * width),
    }.get(tail)


def _outer_size(shape: ModelShape, module: str) -> LinearSize | None:
    width = shape.width
    sizes = {
        "x_embedder": LinearSize(width, shape.latent_channels),
        "context_embedder": LinearSize(width, shape.text_width),
        "proj_out": LinearSize(shape.out_channels, width),
        "norm_out.linear": LinearSize(2 * width, width),
        "time_text_embed.timestep_embedder.linear_1": LinearSize(width, TIME_CHANNELS),
        "time_text_embed.timestep_embedder.linear_2": LinearSize(width, width),
        "time_text_embed.text_embedder.linear_1": LinearSize(width, shape.pooled_width),
        "time_text_embed.text_embedder.linear_2": LinearSize(width, width),
    }
    if shape.guidance_embeds:
        sizes["time_text_embed.guidance_embedder.linear_1"] = LinearSize(width, TIME_CHANNELS)
        sizes["time_text_embed.guidance_embedder.linear_2"] = LinearSize(width, width)
    return sizes.get(module)


def _clip_size(shape: ModelShape, module: str) -> LinearSize:
    clip = shape.clip
    if module.endswith("mlp.fc1"):
        return LinearSize(clip.feed_forward, clip.width)
    if module.endswith("mlp.fc2"):
        return LinearSize(clip.width, clip.feed_forward)
    return LinearSize(clip.attention_width, clip.width)


def _t5_size(shape: ModelShape, module: str) -> LinearSize:
    t5 = shape.t5
    if module.endswith(("wi_0", "wi_1")):
        return LinearSize(t5.feed_forward, t5.width)
    if module.endswith("wo"):
        return LinearSize(t5.width, t5.feed_forward)
    if module.endswith("SelfAttention.o"):
        return LinearSize(t5.width, t5.attention_width)
    return LinearSize(t5.attention_width, t5.width)
