"""What a LoRA file looks like, and which model it seems made for, judged by key names and shapes alone.

Names of layouts and models are guesses, for messages and reports; a file is served or refused by its keys and sizes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from schnell.adapters.canonical import FORMAT
from schnell.adapters.keys import SourceKey, find_place
from schnell.adapters.provenance import read_provenance
from schnell.adapters.shape import FLUX_1
from schnell.adapters.source import SourceFile, SourceModule
from schnell.adapters.tensors import TensorHeader, shorten

#: Trainers and libraries by their keys' prefix; the first that fits counts.
_LAYOUT_NAMES: Final[tuple[tuple[str, str], ...]] = (
    ("base_model.model.", "PEFT"),
    ("lora_transformer_", "OneTrainer"),
    ("lora_unet_", "Kohya"),
    ("lora_te", "Kohya"),
    ("oft_unet_", "Kohya"),
    ("lycoris_", "LyCORIS"),
    ("diffusion_model.", "ComfyUI"),
    ("model.diffusion_model.", "ComfyUI"),
    ("text_encoders.", "ComfyUI"),
    ("transformer.", "diffusers"),
    ("text_encoder", "diffusers"),
)
_KIND_NAMES: Final = {"lora": "LoRA", "dora": "DoRA", "lokr": "LoKr", "loha": "LoHa", "diff": "full difference"}

#: Key patterns that belong to one model alone, most telling first.
_MODELS: Final[tuple[tuple[str, str], ...]] = (
    (
        r"double_stream_modulation|single_stream_modulation|to_qkv_mlp_proj|ff_context[._]linear_in|ff[._]linear_in",
        "FLUX.2",
    ),
    (r"distilled_guidance_layer", "Chroma"),
    (r"lora_te2_text_model|lora_unet_(input|output)_blocks_|conditioner\.embedders\.1", "SDXL"),
    (r"joint_blocks|joint_transformer_blocks", "Stable Diffusion 3"),
    (r"individual_token_refiner|double_blocks\.\d+\.(img|txt)_attn_qkv|context_refiner", "HunyuanVideo"),
    (r"(^|[._])blocks[._]\d+[._](self_attn|cross_attn|ffn)", "Wan"),
    (r"transformer_blocks[._]\d+[._](img_mlp|txt_mlp|img_mod|txt_mod)", "Qwen-Image"),
    (r"transformer_blocks[._]\d+[._]attn1[._].*|scale_shift_table", "LTX-Video or PixArt"),
    (r"(^|[._])layers[._]\d+[._](attention|feed_forward|adaLN)", "Z-Image or Lumina"),
    (r"model[._]layers[._]\d+[._](self_attn|mlp)", "a language model"),
)
_BLOCKS: Final = re.compile(r"(double|single|transformer|single_transformer)_blocks[._]")
_WHOLE_MODEL: Final = re.compile(
    r"(double_blocks|transformer_blocks|down_blocks|input_blocks)\.\d+\..*\.(weight|bias|scale)$"
)


def describe_layout(source: SourceFile) -> str:
    """The trainer or library whose naming the file follows, and its forms, as `Kohya LoRA` or `LyCORIS LoKr`."""
    kinds = Counter(module.kind for module in source.modules if module.kind != "bias")
    forms = [_KIND_NAMES[kind] for kind, _ in kinds.most_common()]
    return f"{_naming(source)} {' + '.join(forms) or 'file'}"


def _naming(source: SourceFile) -> str:
    if source.header.metadata.get("format") == FORMAT:
        return "schnell"
    keys = [(module.prefix, module.name) for module in source.modules]
    keys += [(key.prefix, key.module) for key in source.unknown if isinstance(key, SourceKey)]
    if not keys:
        return "unknown"
    return Counter(_naming_of(prefix, module) for prefix, module in keys).most_common(1)[0][0]


def _naming_of(prefix: str, module: str) -> str:
    if "processor." in module:
        return "XLabs"
    for start, name in _LAYOUT_NAMES:
        if prefix.startswith(start):
            return name
    if prefix:
        return "unknown"
    return (
        "Black Forest Labs"
        if re.match(r"(double|single)_blocks\.|final_layer|img_in|txt_in", module)
        else "bare diffusers"
    )


def guess_model(source: SourceFile) -> str:
    """The model that the file seems made for: `FLUX.1`, `FLUX.2`, `SDXL`, …, or `an unknown model`."""
    keys = list(source.header.entries)
    for pattern, model in _MODELS:
        if any(re.search(pattern, key) for key in keys):
            return model
    if unet := _unet_model(source.header):
        return unet
    if any(re.search(r"(query_norm|key_norm)\.scale$|lora_B\.bias$", key) for key in keys):
        return "FLUX.1 Depth or Canny (a control LoRA)"
    return _flux_model(source)


def _unet_model(header: TensorHeader) -> str | None:
    """Which Stable Diffusion: their cross-attention reads text states of different widths."""
    if not any(re.search(r"(down|up)_blocks[._]\d|mid_block[._]", key) for key in header.entries):
        return None
    for key, entry in header.entries.items():
        if (
            re.search(r"attn2[._]to_[kv]", key)
            and re.search(r"lora_down|lora_A|lora\.down", key)
            and len(entry.shape) > 1
        ):
            return {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 2048: "SDXL"}.get(
                entry.shape[1], "a U-Net"
            )
    return "Stable Diffusion (a U-Net)"


def _flux_model(source: SourceFile) -> str:
    if not source.modules and not source.guidance:
        return "an unknown model"
    width = find_width(source)
    if width is None:
        return "FLUX.1's text encoders"
    if width in {4096, 6144} or any(_is_flux_2_size(module, width) for module in source.modules):
        return "FLUX.2"
    return "FLUX.1" if width == FLUX_1.width else f"a FLUX.1 model of width {width}"


def _is_flux_2_size(module: SourceModule, width: int) -> bool:
    # FLUX.2's feed-forward is gated: 6 times the width where FLUX.1's is 4, and 9 where its fused layer is 7
    feed_forward = module.destination.parts[-1].module.endswith(("ff.net.0.proj", "ff_context.net.0.proj"))
    fused = module.destination.row_blocks == 7
    return (feed_forward and module.size.out_features == 6 * width) or (fused and module.size.out_features == 9 * width)


def find_width(source: SourceFile) -> int | None:
    """The hidden width that most of the file's transformer blocks agree on, or None without such blocks."""
    widths = Counter(
        width for module in source.modules if module.kind != "bias" and (width := _width_in(module)) is not None
    )
    return widths.most_common(1)[0][0] if widths else None


def _width_in(module: SourceModule) -> int | None:
    target = module.destination.parts[0].module
    if module.destination.component != "transformer":
        return None
    if not target.startswith(("transformer_blocks.", "single_transformer_blocks.")):
        return module.size.in_features if target in {"proj_out", "norm_out.linear"} else module.size.out_features
    # layers back to the width have it as outputs, all others as inputs
    narrowing = target.endswith(("ff.net.2", "ff_context.net.2", ".proj_out"))
    return module.size.out_features if narrowing else module.size.in_features


def describe_unknown(source: SourceFile) -> str:
    """The message that refuses a file with keys that name no layer of FLUX.1, or are no LoRA's."""
    keys = [f"{key.prefix}{key.module}" if isinstance(key, SourceKey) else key for key in source.unknown]
    total = len(source.header.entries)
    matched = total - len(keys)
    guidance = f" ({len(source.guidance)} of the guidance embedder)" if source.guidance else ""
    prefixes = ", ".join(_common_prefixes(keys))
    parts = describe_parts(key for key in source.unknown if isinstance(key, str))
    message = (
        f"{matched} of {total} keys match a layer of FLUX.1{guidance}; unknown: {prefixes}{_example(source)}. "
        f"{parts + '. ' if parts else ''}"
        f"It looks like a {describe_layout(source)}, made for {guess_model(source)}"
    )
    if stated := read_provenance(source.header.metadata).base_model:
        message += f"; its metadata say {', '.join(stated[:3])}"
    if _is_whole_model(source.header):
        return f"{message}. It seems to be a whole model, not a LoRA"
    return message


def _example(source: SourceFile) -> str:
    """A whole name that is no layer, where its beginning is one of FLUX.1's: the end is what is wrong with it."""
    for key in source.unknown:
        if isinstance(key, SourceKey) and _BLOCKS.match(key.module):
            return f", such as {shorten(key.prefix + key.module)}"
    return ""


def _common_prefixes(keys: list[str], limit: int = 6) -> list[str]:
    counted = Counter(_stem(key) for key in keys)
    shown = [f"{shorten(stem, 60)} ({count})" for stem, count in counted.most_common(limit)]
    return [*shown, f"and {len(counted) - limit} more"] if len(counted) > limit else shown


def _stem(key: str) -> str:
    """A key up to its first number, so that the same layer of many blocks counts as one."""
    head = re.split(r"[._]\d+(?=[._]|$)", key, maxsplit=1)[0]
    return head if head != key else ".".join(key.split(".")[:2])


def _is_whole_model(header: TensorHeader) -> bool:
    plain = sum(bool(_WHOLE_MODEL.search(key)) and "lora" not in key for key in header.entries)
    return plain > len(header.entries) // 2


def describe_guidance(source: SourceFile) -> str:
    """The warning for layers that FLUX.1 [dev] has and [schnell] lacks."""
    return f"{len(source.guidance)} layers of FLUX.1 [dev]'s guidance embedder were left out: this model has none"


#: What a part's name tells of the method that writes it; the first that fits counts. Compiled where a file is refused,
#: not at every start.
_METHODS: Final[tuple[tuple[str, str], ...]] = (
    (r"(?:^|\.)(?:oft_blocks|oft_diag|oft_[rs])(?:\.|$)", "OFT or BOFT (it rotates the base weights)"),
    (r"(?:^|\.)boft_[rs](?:\.|$)", "BOFT (it rotates the base weights)"),
    (r"(?:^|\.)rescale$", "OFT or BOFT (it rotates the base weights)"),
    (r"(?:^|\.)(?:a1|a2|b1|b2|bm1|bm2)\.weight$", "GLoRA (its delta depends on the base weights)"),
    (r"(?:^|\.)on_input$", "(IA)³ (it rescales what the base weights give)"),
    (r"(?:^|\.)ia3_l(?:\.|$)", "(IA)³ (it rescales what the base weights give)"),
    (r"(?:^|\.)(?:set_weight|reshape_weight)$", "ComfyUI's control LoRAs (it replaces a layer's weights)"),
    (r"(?:^|\.)scalar$", "LyCORIS with use_scalar (a trained factor of the delta)"),
    (r"(?:weight_scale|scale_weight|input_scale|scale_input|scaled_fp8)$", "a file quantized to fp8 or int8"),
    (r"(?:quant_map|absmax|quant_state|bitsandbytes)", "a file quantized by bitsandbytes"),
    (r"(?:^|\.)(?:lora_mid|lokr_t1|lokr_t2|hada_t1|hada_t2)(?:\.|$)", "a Tucker decomposition of a convolution"),
    (r"(?:^|\.)(?:w_norm|b_norm)$", "LyCORIS with train_norm (it changes normalizations)"),
    (r"(?:^|\.)diff_m$", "a mask of full differences"),
    (r"(?:^|\.)vera_lambda_[bd](?:\.|$)", "VeRA (its matrices are not in the file)"),
    (r"(?:^|\.)lora_embedding_[ab]", "a LoRA of token embeddings"),
    (r"(?:^|\.)hra_u", "HRA (it reflects the base weights)"),
    (
        r"(?:^|\.)(?:fourierft_spectrum|vblora_\w+|randlora_\w+|waveft_\w+|bone_block|miss_block)",
        "another PEFT method",
    ),
    (r"(?:^|\.)(?:emb_params|string_to_param|clip_l|clip_g|t5xxl)$", "a textual inversion (an embedding)"),
    (r"modules_to_save", "PEFT's modules_to_save (whole layers, not deltas)"),
    (r"(?:ip_adapter|image_proj)", "an IP-Adapter"),
    (r"(?:controlnet|input_hint|lllite)", "a ControlNet"),
    (r"(?:^|\.)(?:exp_avg|exp_avg_sq|step|state)(?:\.|$)", "an optimizer's state"),
    (r"(?:^|\.)lora_[ab](?:\.\w+)?\.bias$|(?:^|\.)lora_(?:up|down)\.bias$", "a LoRA with biases"),
)
_MOST_SHOWN: Final = 4


def find_part(key: str) -> tuple[str, str] | None:
    """A layer's name and the part after it, of a key whose ending is no LoRA's; None where it names no layer either."""
    for match in reversed(list(re.finditer(r"\.", key))):
        if find_place(key[: match.start()])[2] is not None:
            return key[: match.start()], key[match.end() :]
    return None


def describe_parts(keys: Iterable[str]) -> str:
    """Which parts of these keys are not read, and what writes them: one sentence, or nothing where none is known."""
    found: Counter[tuple[str, str | None]] = Counter()
    for key in keys:
        if (told := _describe_part(key)) is not None:
            found[told] += 1
    # what has a name first: it is what somebody can look for
    ordered = sorted(found.items(), key=lambda each: (each[0][1] is None, -each[1]))
    return "; ".join(_sentences(ordered[:_MOST_SHOWN]))


def _sentences(found: Iterable[tuple[tuple[str, str | None], int]]) -> Iterator[str]:
    for (part, method), count in found:
        reason = f"it belongs to {method}" if method else "it is no part of a LoRA"
        yield f"{shorten(part, 60)} is not read ({count}): {reason}"


def _describe_part(key: str) -> tuple[str, str | None] | None:
    place = find_part(key)
    part = key if place is None else place[1]
    for pattern, method in _METHODS:
        if match := re.search(pattern, part.lower()):
            # of a key that names no layer, the part alone: the rest is told elsewhere
            return (part if place else part[match.start() : match.end()].strip("."), method)
    return (part, None) if place else None
