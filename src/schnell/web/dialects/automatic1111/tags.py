"""LoRAs as tags in the prompt: `<lora:NAME:SCALE>`, and `<lyco:NAME:SCALE>`, which is another spelling of it."""

import re
from typing import Final

from schnell.errors import FieldProblem, InvalidFieldError
from schnell.loras.references import MAX_REFERENCE_LENGTH
from schnell.spec import MAX_LORA_SCALE, MAX_LORAS, MAX_PROMPT_LENGTH, MIN_LORA_SCALE, LoraRef, combine_loras

_TAG: Final = re.compile(rf"<(lora|lyco):([^<>]{{1,{MAX_REFERENCE_LENGTH + 100}}})>", re.IGNORECASE)
#: A whole prompt, and its longest possible tags.
_MAX_TAGGED_PROMPT: Final = MAX_PROMPT_LENGTH + MAX_LORAS * (MAX_REFERENCE_LENGTH + 140)
_WEIGHTS: Final = re.compile(
    r"(?::(?:(?:te|unet)=)?[-+]?(?:[0-9]{1,9}\.?[0-9]{0,9}|\.[0-9]{1,9})){1,3}$", re.IGNORECASE
)


def read_lora_tags(prompt: str, notes: list[str]) -> tuple[str, tuple[LoraRef, ...]]:
    """The prompt without its tags, and the LoRAs that they name, at scale 1 where none is given.

    A LoRA that is named twice is one, its scales added. What a tag asks for and FLUX cannot do is added to `notes`.

    Raises:
        InvalidFieldError: the prompt is longer than any that could be drawn, or names more than eight LoRAs.
    """
    # before anything is parsed: a body full of tags must cost nothing
    if len(prompt) > _MAX_TAGGED_PROMPT:
        problem = f"must have at most {MAX_PROMPT_LENGTH} characters beside its LoRA tags, got {len(prompt)} with them"
        raise InvalidFieldError(FieldProblem("prompt", problem))
    loras = combine_loras(_read_tag(match[1].lower(), match[2], notes) for match in _TAG.finditer(prompt))
    if len(loras) > MAX_LORAS:
        problem = f"may name {MAX_LORAS} LoRAs at most, got {len(loras)}"
        raise InvalidFieldError(FieldProblem("prompt", problem))
    return " ".join(_TAG.sub(" ", prompt).split()) if loras else prompt, loras


def _read_tag(kind: str, text: str, notes: list[str]) -> LoraRef:
    if kind == "lyco":
        notes.append(f"<lyco:{text}> is read as <lora:{text}>: both kinds of files are LoRAs here")
    match = _WEIGHTS.search(text)
    if match is None:
        return LoraRef(text.strip(), 1.0, "prompt")
    name = text[: match.start()].strip()
    weights = [float(part.rpartition("=")[2]) for part in match[0][1:].split(":")]
    if len(weights) > 1:
        # the web UI has one strength for the text encoder and one for the U-Net
        notes.append(f"<lora:{text}>: one strength counts for the whole LoRA here, {weights[0]:g}")
    scale = min(max(weights[0], MIN_LORA_SCALE), MAX_LORA_SCALE)
    if scale != weights[0]:
        notes.append(
            f"<lora:{text}>: the strength became {scale:g}, it may be {MIN_LORA_SCALE:g} to {MAX_LORA_SCALE:g}"
        )
    return LoraRef(name, scale, "prompt")
