"""The networks inside a checkpoint file: which there are, under which prefix, and their configurations from the shapes.

A file is understood in whole or refused, as a LoRA is: every tensor that a network needs must be there in its size, and
none may be left over.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from schnell.errors import ModelFolderError
from schnell.models.checkpoint_header import SAFETENSORS_TYPES, CheckpointHeader, TensorInfo
from schnell.models.foreign_models import foreign_tensors, foreign_transformer
from schnell.models.network_tensors import CONFIGURED_PARTS

Shape = tuple[int, ...]

#: By component: a tensor that tells it, and the prefixes that it may have in a file: ComfyUI's, older ones, none.
_SIGNS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "transformer": (("double_blocks.0.img_attn.qkv.weight",), ("model.diffusion_model.", "diffusion_model.", "")),
    "text_encoder": (
        ("encoder.layers.0.self_attn.q_proj.weight",),
        ("text_encoders.clip_l.transformer.text_model.", "text_encoders.clip_l.text_model.", "text_model.", ""),
    ),
    "text_encoder_2": (
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "enc.blk.0.attn_q.weight"),
        ("text_encoders.t5xxl.transformer.", "text_encoders.t5xxl.", ""),
    ),
    "vae": (
        ("decoder.mid.block_1.conv1.weight", "decoder.mid_block.resnets.0.conv1.weight"),
        ("vae.", "first_stage_model.", ""),
    ),
}
#: Beside an fp8 weight: the factor to multiply it with, and one for activations, which is not used.
SCALES: Final = (".scale_weight", ".weight_scale")
_NO_WEIGHTS: Final = re.compile(
    r"(^|\.)(scaled_fp8|logit_scale|text_projection\.weight|position_ids|spiece_model)$|\.(scale_input|input_scale)$"
)


@dataclass(frozen=True, slots=True)
class CheckpointPart:
    """One network in a file: the component of a model that it is, what stands before its names, its `config.json`."""

    component: str
    prefix: str
    config: Mapping[str, Any]


def find_parts(header: CheckpointHeader) -> tuple[CheckpointPart, ...]:
    """The networks in a file, checked in whole against the configurations that their sizes tell.

    Raises:
        ModelFolderError: another model than FLUX.1 [schnell], or a network with tensors missing or left over.
    """
    if foreign := foreign_tensors(header.tensors):
        raise ModelFolderError(f"{header.path.name} is {foreign}")
    left = dict(header.tensors)
    parts = [part for component in _SIGNS if (part := _take_part(header, component, left))]
    if not parts:
        shown = ", ".join(sorted(header.tensors)[:3]) or "none"
        raise ModelFolderError(
            f"{header.path.name} holds no network of FLUX.1 [schnell]; its first tensors are: {shown}"
        )
    if rest := sorted(name for name in left if not _NO_WEIGHTS.search(name)):
        raise ModelFolderError(
            f"{header.path.name} holds {len(rest)} tensors that no network takes, {rest[0]} among them"
        )
    return tuple(parts)


def _take_part(header: CheckpointHeader, component: str, left: dict[str, TensorInfo]) -> CheckpointPart | None:
    signs, prefixes = _SIGNS[component]
    prefix = next((each for each in prefixes if any(each + sign in left for sign in signs)), None)
    if prefix is None:
        return None
    taken = {name for name in left if name.startswith(prefix)}
    tensors = {name.removeprefix(prefix): left.pop(name) for name in taken}
    _check_types(header, tensors)
    shapes = {name: each.shape for name, each in tensors.items() if not is_beside_weights(name)}
    describe, expected = CONFIGURED_PARTS[component]
    try:
        config = describe(shapes)
    except KeyError as error:
        raise ModelFolderError(f"{header.path.name} is incomplete: its {component} lacks {error.args[0]}") from error
    # a matrix that is a vector, or heads that have no width
    except (ValueError, ArithmeticError) as error:
        raise ModelFolderError(f"{header.path.name}: the sizes in {component} are none of FLUX.1's: {error}") from error
    if component == "transformer" and (foreign := foreign_transformer(None, config)):
        raise ModelFolderError(f"{header.path.name} is {foreign}")
    _check_shapes(header.path.name, component, shapes, dict(expected(config, shapes)))
    return CheckpointPart(component, prefix, config)


def is_beside_weights(name: str) -> bool:
    """Whether a tensor is none of the network's: a scale of another, or something that files carry along."""
    return name.endswith(SCALES) or _NO_WEIGHTS.search(name) is not None


def _check_types(header: CheckpointHeader, tensors: Mapping[str, TensorInfo]) -> None:
    for name, tensor in tensors.items():
        # a GGUF file's types were checked when its blocks were counted
        if header.form == "safetensors" and not is_beside_weights(name) and tensor.dtype not in SAFETENSORS_TYPES:
            known = ", ".join(sorted(SAFETENSORS_TYPES))
            raise ModelFolderError(f"{header.path.name}: {name} is stored as {tensor.dtype}; these are read: {known}")


def _check_shapes(file: str, component: str, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    if missing := sorted(expected.keys() - found.keys()):
        raise ModelFolderError(
            f"{file} is incomplete: its {component} lacks {len(missing)} tensors, {missing[0]} among them"
        )
    if beyond := sorted(found.keys() - expected.keys()):
        raise ModelFolderError(
            f"{file}: its {component} has {len(beyond)} tensors that FLUX.1 has not, {beyond[0]} among them"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise ModelFolderError(f"{file}: {name} is {list(found[name])}, and must be {list(shape)}")
