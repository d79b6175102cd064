"""Module names of FLUX.1's linear layers in every naming that trainers use, and the diffusers layers they stand for.

A name is known with its dots, `double_blocks.0.img_attn.qkv` (Black Forest Labs), and with underscores throughout,
`double_blocks_0_img_attn_qkv` (Kohya), but not half and half: `double_blocks.0.img_attn_qkv` is HunyuanVideo's.
Fused layers list the parts that they are split into; a part's `blocks` are the equal row blocks of the fused layer that
it takes, in order. The final layer's modulation holds (shift, scale) at Black Forest Labs and (scale, shift) in
diffusers, so its two halves change places.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

Component = Literal["transformer", "text_encoder", "text_encoder_2"]
COMPONENTS: Final[tuple[Component, ...]] = ("transformer", "text_encoder", "text_encoder_2")
GUIDANCE_MODULES: Final = (
    "time_text_embed.guidance_embedder.linear_1",
    "time_text_embed.guidance_embedder.linear_2",
)


@dataclass(frozen=True, slots=True)
class Part:
    """One diffusers module fed by a source module: the source's row blocks (start, stop) that it takes, in order."""

    module: str
    blocks: tuple[tuple[int, int], ...] = ((0, 1),)


@dataclass(frozen=True, slots=True)
class Destination:
    """What a source module stands for: a component, its parts, and how many equal row blocks the source consists of."""

    component: Component
    parts: tuple[Part, ...]
    row_blocks: int = 1


_QKV: Final = (("to_q", 0), ("to_k", 1), ("to_v", 2))
_ADDED_QKV: Final = (("add_q_proj", 0), ("add_k_proj", 1), ("add_v_proj", 2))

_TOP: Final[dict[str, str]] = {
    "img_in": "x_embedder",
    "x_embedder": "x_embedder",
    "txt_in": "context_embedder",
    "context_embedder": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "time_text_embed.timestep_embedder.linear_1": "time_text_embed.timestep_embedder.linear_1",
    "time_text_embed.timestep_embedder.linear_2": "time_text_embed.timestep_embedder.linear_2",
    "time_text_embed.text_embedder.linear_1": "time_text_embed.text_embedder.linear_1",
    "time_text_embed.text_embedder.linear_2": "time_text_embed.text_embedder.linear_2",
    "time_text_embed.guidance_embedder.linear_1": "time_text_embed.guidance_embedder.linear_1",
    "time_text_embed.guidance_embedder.linear_2": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "proj_out": "proj_out",
    "norm_out.linear": "norm_out.linear",
}
_DOUBLE: Final[dict[str, str]] = {
    "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "img_mod.lin": "norm1.linear",
    "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    "txt_mod.lin": "norm1_context.linear",
    "processor.proj_lora1": "attn.to_out.0",
    "processor.proj_lora2": "attn.to_add_out",
}
_DOUBLE_FUSED: Final[dict[str, tuple[tuple[str, int], ...]]] = {
    "img_attn.qkv": _QKV,
    "txt_attn.qkv": _ADDED_QKV,
    "processor.qkv_lora1": _QKV,
    "processor.qkv_lora2": _ADDED_QKV,
    "attn.to_qkv": _QKV,
    "attn.to_added_qkv": _ADDED_QKV,
}
_DOUBLE_DIFFUSERS: Final = (
    "norm1.linear",
    "norm1_context.linear",
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
)
_SINGLE: Final[dict[str, str]] = {
    "linear2": "proj_out",
    "modulation.lin": "norm.linear",
    "processor.proj_lora": "proj_out",
}
_SINGLE_DIFFUSERS: Final = ("norm.linear", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")
_CLIP: Final = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
)
_T5: Final = (
    "layer.0.SelfAttention.q",
    "layer.0.SelfAttention.k",
    "layer.0.SelfAttention.v",
    "layer.0.SelfAttention.o",
    "layer.1.DenseReluDense.wi_0",
    "layer.1.DenseReluDense.wi_1",
    "layer.1.DenseReluDense.wo",
)
#: A name's list of blocks, the block's index, and the rest, which the tables hold with `#` for the index.
_DOTTED: Final = re.compile(
    r"^((?:double_blocks|single_blocks|single_transformer_blocks|transformer_blocks"
    r"|(?:text_model\.)?encoder\.layers|encoder\.block)\.)(\d{1,4})(\..+)$"
)
_FLAT: Final = re.compile(
    r"^((?:double_blocks|single_blocks|single_transformer_blocks|transformer_blocks"
    r"|(?:text_model_)?encoder_layers|encoder_block)_)(\d{1,4})(_.+)$"
)


_BLOCK: Final = re.compile(
    r"^(transformer_blocks|single_transformer_blocks|encoder\.layers|encoder\.block)\.(\d+)\.(.+)$"
)


def find_destination(module: str, component: Component) -> Destination | None:
    """What a source module named `module` (without prefix) stands for; None if FLUX.1 has no such layer."""
    match = (_DOTTED if "." in module else _FLAT).match(module)
    template = f"{match[1]}#{match[3]}" if match else module
    found = _TABLES[component].get(template)
    if found is None or match is None:
        return found
    index = str(int(match[2]))  # without leading zeros, so that one layer has one name
    parts = tuple(Part(part.module.replace("#", index), part.blocks) for part in found.parts)
    return Destination(found.component, parts, found.row_blocks)


@dataclass(frozen=True, slots=True)
class BlockPlace:
    """Where in a list of blocks a diffusers module lies: `transformer_blocks`, 3, `attn.to_q`."""

    family: str
    index: int
    layer: str


def find_block(module: str) -> BlockPlace | None:
    """The block that a diffusers or transformers module lies in, or None for a layer outside of all blocks."""
    match = _BLOCK.match(module)
    return BlockPlace(match[1], int(match[2]), match[3]) if match else None


def _transformer_table() -> dict[str, Destination]:
    table = {source: _whole("transformer", target) for source, target in _TOP.items()}
    table["final_layer.adaLN_modulation.1"] = Destination(
        "transformer", (Part("norm_out.linear", ((1, 2), (0, 1))),), row_blocks=2
    )
    for source, target in _DOUBLE.items():
        table[f"double_blocks.#.{source}"] = _whole("transformer", f"transformer_blocks.#.{target}")
    for source, pieces in _DOUBLE_FUSED.items():
        family = "transformer_blocks" if source.startswith("attn.") else "double_blocks"
        table[f"{family}.#.{source}"] = _fused("transformer_blocks.#.attn", pieces)
    for module in _DOUBLE_DIFFUSERS:
        table[f"transformer_blocks.#.{module}"] = _whole("transformer", f"transformer_blocks.#.{module}")
    return table | _single_block_table()


def _single_block_table() -> dict[str, Destination]:
    block = "single_transformer_blocks.#"
    table = {f"single_blocks.#.{source}": _whole("transformer", f"{block}.{to}") for source, to in _SINGLE.items()}
    table |= {f"{block}.{module}": _whole("transformer", f"{block}.{module}") for module in _SINGLE_DIFFUSERS}
    qkv = _fused(f"{block}.attn", _QKV)
    table["single_blocks.#.processor.qkv_lora"] = qkv
    table[f"{block}.attn.to_qkv"] = qkv
    table["single_blocks.#.linear1"] = Destination(
        "transformer", (*qkv.parts, Part(f"{block}.proj_mlp", ((3, 7),))), row_blocks=7
    )
    return table


def _clip_table() -> dict[str, Destination]:
    return {
        f"{prefix}encoder.layers.#.{module}": _whole("text_encoder", f"encoder.layers.#.{module}")
        for prefix in ("", "text_model.")
        for module in _CLIP
    }


def _t5_table() -> dict[str, Destination]:
    return {f"encoder.block.#.{module}": _whole("text_encoder_2", f"encoder.block.#.{module}") for module in _T5}


def _whole(component: Component, module: str) -> Destination:
    return Destination(component, (Part(module),))


def _fused(parent: str, pieces: tuple[tuple[str, int], ...]) -> Destination:
    parts = tuple(Part(f"{parent}.{name}", ((index, index + 1),)) for name, index in pieces)
    return Destination("transformer", parts, row_blocks=len(pieces))


def _both_spellings(table: dict[str, Destination]) -> dict[str, Destination]:
    return table | {name.replace(".", "_"): destination for name, destination in table.items()}


_TABLES: Final[dict[Component, dict[str, Destination]]] = {
    "transformer": _both_spellings(_transformer_table()),
    "text_encoder": _both_spellings(_clip_table()),
    "text_encoder_2": _both_spellings(_t5_table()),
}
