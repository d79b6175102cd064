"""Parts of keys that are no LoRA's: which part of a key is not understood, and the method that writes it."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from schnell.adapters.keys import find_place
from schnell.adapters.tensors import shorten

#: What a part's name tells of the method that writes it; the first that fits counts.
_METHODS: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(pattern), method)
    for pattern, method in (
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
        if match := pattern.search(part.lower()):
            # of a key that names no layer, the part alone: the rest is told elsewhere
            return (part if place else part[match.start() : match.end()].strip("."), method)
    return (part, None) if place else None
