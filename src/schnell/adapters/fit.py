"""Whether an adapter's layers exist in the model, and have its sizes.

The model's layers are known by its `ModelShape` alone: a LoRA can be checked where no weights are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from schnell.adapters.names import BlockPlace, Component, find_block
from schnell.adapters.shape import FLUX_1, TIME_CHANNELS, LinearSize, ModelShape
from schnell.adapters.source import SourceFile, SourceModule
from schnell.adapters.tensors import shorten

#: Blocks of a model that is not known: as many as any file may name.
_ANY_NUMBER: Final = 10_000
_BLOCKS: Final = ("transformer_blocks.", "single_transformer_blocks.")


@dataclass(frozen=True, slots=True)
class Target:
    """One diffusers layer that an adapter acts on, and the size of its delta; -1 outputs: not known from the header."""

    component: Component
    module: str
    size: LinearSize


def find_misfit(targets: Iterable[Target], shape: ModelShape | None, width: int | None, made_for: str) -> str | None:
    """Why these layers do not fit the model, or None if they do: the width first, then blocks, then each layer's size.

    `width` is the file's own hidden width (None if it has no transformer blocks), `made_for` a guess for the message.
    Without a shape they are measured against a FLUX.1 of their own width; where that is not 3072, inside blocks only.
    """
    targets = tuple(targets)
    if shape is None:
        shape = _own_shape(width)
        if width not in {None, FLUX_1.width}:
            targets = tuple(target for target in targets if target.module.startswith(_BLOCKS))
    if width is not None and width != shape.width:
        return f"it is made for width {width} ({made_for}), this model is {shape.width} wide"
    problems = [_block_problem(target, shape) for target in targets]
    problems += [_size_problem(target, shape, made_for) for target in targets]
    return next((problem for problem in problems if problem), None)


def _own_shape(width: int | None) -> ModelShape:
    """FLUX.1 itself, or one of another width with any number of blocks."""
    if width in {None, FLUX_1.width}:
        return FLUX_1
    return replace(FLUX_1, width=width or FLUX_1.width, double_blocks=_ANY_NUMBER, single_blocks=_ANY_NUMBER)


def targets_of_source(source: SourceFile) -> tuple[Target, ...]:
    """The layers that a source file acts on, with their sizes as its header states them."""
    return tuple(target for module in source.modules if module.kind != "bias" for target in _targets(module))


def _targets(module: SourceModule) -> Iterable[Target]:
    blocks = module.destination.row_blocks
    size = module.size
    for part in module.destination.parts:
        taken = sum(stop - start for start, stop in part.blocks)
        # a fused layer that cannot be split evenly keeps its size here, and the message names that
        whole = size.out_features % blocks == 0
        out = size.out_features // blocks * taken if whole else size.out_features
        yield Target(
            module.destination.component,
            part.module,
            LinearSize(-1 if size.out_features < 0 else out, size.in_features),
        )


def _block_problem(target: Target, shape: ModelShape) -> str | None:
    place = find_block(target.module)
    if place is None:
        return None
    family, count = place.family, _block_count(shape, place.family)
    if place.index < count:
        return None
    name = f"{target.component}.{family}.{place.index}"
    return f"it targets {name}, this model has only {count} ({family}.0 to {count - 1})"


def _size_problem(target: Target, shape: ModelShape, made_for: str) -> str | None:
    name = f"{target.component}.{shorten(target.module)}"
    expected = _expected_size(shape, target.component, target.module)
    if expected is None:
        return f"it targets {name}, which this model does not have"
    wrong_out = target.size.out_features not in {-1, expected.out_features}
    if wrong_out or target.size.in_features != expected.in_features:
        return f"{name} is {target.size} in the file (made for {made_for}), {expected} in this model"
    return None


def _expected_size(shape: ModelShape, component: Component, module: str) -> LinearSize | None:
    """The size of a diffusers or transformers module in a model of this shape; None where it has none."""
    match component:
        case "transformer":
            return _transformer_size(shape, module)
        case "text_encoder":
            return _clip_size(shape, module)
        case "text_encoder_2":
            return _t5_size(shape, module)


def _block_count(shape: ModelShape, family: str) -> int:
    """How many blocks the model has in the list `family` (`transformer_blocks`, `encoder.layers`, …)."""
    return {
        "transformer_blocks": shape.double_blocks,
        "single_transformer_blocks": shape.single_blocks,
        "encoder.layers": shape.clip.layers,
        "encoder.block": shape.t5.layers,
    }[family]


def _transformer_size(shape: ModelShape, module: str) -> LinearSize | None:
    place = find_block(module)
    return _outer_size(shape, module) if place is None else _block_size(shape.width, place)


def _block_size(width: int, place: BlockPlace) -> LinearSize | None:
    if place.layer.startswith("attn."):
        return LinearSize(width, width)
    single = place.family == "single_transformer_blocks"
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
    }.get(place.layer)


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
