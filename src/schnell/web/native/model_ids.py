"""What a request's `model` means: an id of the served model, alone or with a LoRA after a colon.

`flux-schnell-lora:black-light@0.8` is for clients that have a menu of models and no field for LoRAs.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from schnell.errors import FieldProblem, InvalidFieldError
from schnell.loras.repository import LibraryLora
from schnell.spec import DEFAULT_LORA_SCALE, MAX_LORA_SCALE, MIN_LORA_SCALE, LoraRef
from schnell.web.services import ServedModel

#: The id that LoRAs are listed under: the shortest of those that say what it is.
LORA_BASE: Final = "flux-schnell-lora"
#: The owner under which ids without one are listed where every model has an owner, as at Replicate.
OWNER: Final = "schnell"
_SCALED: Final = re.compile(r"(?s)(.+)@([-+]?(?:[0-9]{1,4}(?:\.[0-9]{0,16})?|\.[0-9]{1,16}))")
#: As many characters as a record has room for.
_LONGEST_ID: Final = 200


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The id to keep in the record, and the LoRA that it names (None: none). `scaled`: with a scale of its own."""

    id: str
    lora: LoraRef | None = None
    scaled: bool = False

    def loras_beside(self, values: Mapping[str, Any]) -> tuple[LoraRef, ...]:
        """The LoRA of the id, for a request whose fields are `values`.

        A `lora_scale` without `lora_weights` is meant for it, unless the id has a scale itself.
        """
        if self.lora is None:
            return ()
        scale = values.get("lora_scale")
        if self.scaled or values.get("lora_weights") or not isinstance(scale, int | float):
            return (self.lora,)
        # a scale out of range is refused where the fields are read
        return (replace(self.lora, scale=min(max(float(scale), MIN_LORA_SCALE), MAX_LORA_SCALE)),)


def choose_model(model: ServedModel, name: str) -> ModelChoice | None:
    """What `name` means; None for a model that is not served. Whether there is such a LoRA is not looked up.

    Raises:
        InvalidFieldError: its scale is out of range.
    """
    name = name.strip()
    bare = name.removeprefix(f"{OWNER}/")
    for text in (name, bare):
        if found := model.find(text):
            return ModelChoice(found)
        base, colon, reference = text.partition(":")
        if colon and reference.strip() and (found := model.find(base)):
            return _with_lora(found, reference.strip())
    return None


def lora_ids(found: Iterable[LibraryLora]) -> Iterator[str]:
    """The id of each LoRA of the library, as lists of models show it."""
    for lora in found:
        yield f"{LORA_BASE}:{lora.name}"


def _with_lora(base: str, reference: str) -> ModelChoice:
    match = _SCALED.fullmatch(reference)
    scale = float(match[2]) if match else DEFAULT_LORA_SCALE
    if not MIN_LORA_SCALE <= scale <= MAX_LORA_SCALE:
        problem = f"the scale after @ must be {MIN_LORA_SCALE:g}-{MAX_LORA_SCALE:g}, got {scale:g}"
        raise InvalidFieldError(FieldProblem("model", problem))
    lora = LoraRef(match[1] if match else reference, scale, "model")
    shown = f"{base}:{reference}"
    # an address may hold a token, and has no place in lists of records
    kept = base if "://" in reference or len(shown) > _LONGEST_ID else shown
    return ModelChoice(kept, lora, scaled=match is not None)
