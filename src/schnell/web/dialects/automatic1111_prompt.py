"""LoRAs named inside a prompt: `a red apple <lora:black-light:0.8>`."""

import re
from typing import Final

from schnell.spec import (MAX_LORA_SCALE, MIN_LORA_SCALE, LoraRef)

_TAG: Final = re.compile(r"<lora:([^<>]{1,600})>", re.IGNORECASE)
_WEIGHTS: Final = re.compile(
    r"(?::(?:(?:te|unet)=)?[-+]?(?:[0-9]{1,9}\.?[0-9]{0,9}|\.[0-9]{1,9})){1,3}$", re.IGNORECASE
)


def read_lora_tags(prompt: str, notes: list[str]) -> tuple[str, tuple[LoraRef, ...]]:
    """The prompt without its tags, and the LoRAs that they name, at scale 1 unless they say otherwise.

    What becomes of a tag that FLUX cannot follow to the letter is added to `notes`.
    """
    loras = tuple(_read_tag(match[1], notes) for match in _TAG.finditer(prompt))
    return " ".join(_TAG.sub(" ", prompt).split()) if loras else prompt, loras


def _read_tag(text: str, notes: list[str]) -> LoraRef:
    match = _WEIGHTS.search(text)
    if match is None:
        return LoraRef(text.strip(), 1.0)
    name = text[: match.start()].strip()
    weights = [float(part.rpartition("=")[2]) for part in match[0][1:].split(":")]
    if len(weights) > 1:
        notes.append(f"<lora:{text}>: one strength counts for the whole LoRA here, {weights[0]:g}")
    scale = min(max(weights[0], MIN_LORA_SCALE), MAX_LORA_SCALE)
    if scale != weights[0]:
        notes.append(
            f"<lora:{text}>: the strength became {scale:g}, it may be {MIN_LORA_SCALE:g} to {MAX_LORA_SCALE:g}"
        )
    return LoraRef(name, scale)
