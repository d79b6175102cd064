"""A key of a LoRA file, taken apart: prefix (which network), module (which layer of it), part (which of its tensors).

`lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight` is `lora_unet_`, `double_blocks_0_img_attn_qkv`, `down`.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from schnell.adapters.names import COMPONENTS, Component, Destination, find_destination

PartName = Literal[
    "down",
    "up",
    "alpha",
    "magnitude",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_rows",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "diff",
    "diff_b",
]

#: Prefixes and the component that each stands for; a longer one comes before those that it begins with.
_PREFIXES: Final[tuple[tuple[str, Component], ...]] = (
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.t5xxl.transformer.", "text_encoder_2"),
    ("model.diffusion_model.", "transformer"),
    ("diffusion_model.", "transformer"),
    ("lora_transformer_", "transformer"),
    ("lora_unet_", "transformer"),
    ("lycoris_", "transformer"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
    ("transformer.", "transformer"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("clip_l.", "text_encoder"),
    ("t5xxl.", "text_encoder_2"),
)
#: Wrappers of a model that leave their names in its keys: PEFT's, torch.compile's, distributed training's.
_WRAPPERS: Final = ("base_model.model.", "_orig_mod.", "module.", "_fsdp_wrapped_module.")

_PLAIN_PARTS: Final[tuple[PartName, ...]] = (
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_w1",
    "lokr_w2",
    "lokr_rows",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
)
#: PEFT puts the adapter's name, often `default`, between a part and `.weight`.
_ADAPTER: Final = r"(?:\.(?!weight|bias)\w+)?"
_NAMED_PARTS: Final[tuple[tuple[str, PartName], ...]] = (
    (rf"\.lora_A{_ADAPTER}(?:\.weight)?", "down"),
    (rf"\.lora_B{_ADAPTER}(?:\.weight)?", "up"),
    (r"\.lora_down\.weight", "down"),
    (r"\.lora_up\.weight", "up"),
    (r"\.lora\.down\.weight", "down"),
    (r"\.lora\.up\.weight", "up"),
    (r"(?<=_lora)\.down\.weight", "down"),
    (r"(?<=_lora)\.up\.weight", "up"),
    (r"(?<=_lora[12])\.down\.weight", "down"),
    (r"(?<=_lora[12])\.up\.weight", "up"),
    (r"\.(?:lora_)?alpha", "alpha"),
    (r"\.dora_scale", "magnitude"),
    (r"\.dora_magnitude", "magnitude"),
    (rf"\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?", "magnitude"),
    (r"\.diff", "diff"),
    (r"\.diff_b", "diff_b"),
)
_SUFFIXES: Final[tuple[tuple[re.Pattern[str], PartName], ...]] = (
    *((re.compile(pattern + "$"), part) for pattern, part in _NAMED_PARTS),
    *((re.compile(rf"\.{part}(?:\.\w+)?$"), part) for part in _PLAIN_PARTS),
)


@dataclass(frozen=True, slots=True)
class SourceKey:
    """One key of a LoRA file. `destination` is None where the module is no layer of FLUX.1."""

    key: str
    prefix: str
    module: str
    part: PartName
    destination: Destination | None


def split_key(key: str) -> SourceKey | None:
    """Take a key apart, or None if its ending is no part of a LoRA's."""
    for pattern, part in _SUFFIXES:
        if match := pattern.search(key):
            prefix, module, destination = find_place(key[: match.start()])
            return SourceKey(key, prefix, module, part, destination)
    return None


def find_place(stem: str) -> tuple[str, str, Destination | None]:
    """The prefix and the module that a key without its part names, and the layers that it stands for (None: none)."""
    wrapper, bare = _unwrap(stem)
    for prefix, component in _PREFIXES:
        if bare.startswith(prefix):
            # PEFT's wrapper may stand inside a prefix, too
            inner, module = _unwrap(bare.removeprefix(prefix))
            return wrapper + prefix + inner, module, find_destination(module, component)
    # no prefix: layers of different components have different names, so at most one of them knows this one
    for component in COMPONENTS:
        if destination := find_destination(bare, component):
            return wrapper, bare, destination
    return wrapper, bare, None


def _unwrap(stem: str) -> tuple[str, str]:
    """What libraries put around a model, taken off its layers' names: their names, and the rest."""
    bare = stem
    while wrapper := next((each for each in _WRAPPERS if bare.startswith(each)), ""):
        bare = bare.removeprefix(wrapper)
    return stem[: len(stem) - len(bare)], bare
