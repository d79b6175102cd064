"""Where requests name LoRAs: `lora_weights`, `extra_lora`, the list `loras`, and a model's id.

The list is that of fal's and of ComfyUI's APIs: `[{"path": "owner/name", "scale": 0.8}, …]`, or names alone. The id
`flux-schnell-lora:black-light@0.8` is for clients that have a menu of models and no field for LoRAs.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from schnell.errors import FieldProblem, InvalidFieldError
from schnell.loras.references import parse_reference
from schnell.loras.repository import LibraryLora
from schnell.spec import DEFAULT_LORA_SCALE, MAX_LORA_SCALE, MAX_LORAS, MIN_LORA_SCALE, LoraRef
from schnell.web.fields import Fields, show_range
from schnell.web.services import ServedModel

_PAIRS: Final = (("lora_weights", "lora_scale"), ("extra_lora", "extra_lora_scale"))
_LIST: Final = "loras"
LORA_KEYS: Final = (*(name for pair in _PAIRS for name in pair), _LIST)
#: Under which name an entry of the list says which LoRA it means; the first that is given counts.
_NAMES: Final = ("path", "name")
_ENTRY_KEYS: Final = (*_NAMES, "scale")


def read_loras(fields: Fields, lowest_scale: float, warnings: list[str]) -> tuple[LoraRef, ...]:
    """Every LoRA that a request's fields name, in the order of the fields. What is wrong is noted in `fields`."""
    found = []
    for name, scale_name in _PAIRS:
        reference = fields.text(name)
        scale = fields.number(scale_name, lowest_scale, MAX_LORA_SCALE)
        if reference and reference.strip():
            found.append(LoraRef(reference.strip(), DEFAULT_LORA_SCALE if scale is None else float(scale), name))
    listed = list(_read_list(fields, lowest_scale, warnings))
    if len(found) + len(listed) > MAX_LORAS:
        fields.refuse(_LIST, f"a request may name {MAX_LORAS} LoRAs, got {len(found) + len(listed)}")
    return (*found, *listed)


def _read_list(fields: Fields, lowest_scale: float, warnings: list[str]) -> Iterator[LoraRef]:
    entries = fields.raw(_LIST)
    if entries is None:
        return
    if not isinstance(entries, list):
        fields.refuse(_LIST, 'must be a list, such as [{"path": "owner/name", "scale": 0.8}]')
        return
    # before they are read: a body full of entries must cost nothing
    if len(entries) > MAX_LORAS:
        fields.refuse(_LIST, f"a request may name {MAX_LORAS} LoRAs, got {len(entries)}")
        return
    for index, entry in enumerate(entries):
        if lora := _read_entry(fields, f"{_LIST}.{index}", entry, lowest_scale, warnings):
            yield lora


def _read_entry(fields: Fields, place: str, entry: Any, lowest_scale: float, warnings: list[str]) -> LoraRef | None:
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, dict):
        fields.refuse(place, 'must be an object, such as {"path": "owner/name", "scale": 0.8}, or a name')
        return None
    values = fields.within(place, entry)
    name = next((each for each in _NAMES if entry.get(each) is not None), _NAMES[0])
    reference = values.text(name, required=True)
    scale = values.number("scale", lowest_scale, MAX_LORA_SCALE)
    if reference is not None and not reference.strip():
        # an empty row of a form, as an empty lora_weights is
        warnings.append(f"{place}.{name} is empty: it names no LoRA")
    if unknown := [str(each)[:60] for each in entry if each not in _ENTRY_KEYS]:
        warnings.append(f"{place} has {', '.join(unknown[:4])}: only path, name and scale are read")
    if not reference or not reference.strip():
        return None
    return LoraRef(reference.strip(), DEFAULT_LORA_SCALE if scale is None else float(scale), f"{place}.{name}")


def echo_loras(echo: Mapping[str, Any]) -> dict[str, Any]:
    """A checked `promptObject` with nothing in its list of LoRAs but what is read of it: records keep it for good."""
    values = dict(echo)
    if _LIST in values:
        values[_LIST] = [entry if isinstance(entry, str) else _known_part(entry) for entry in values[_LIST]]
    return values


def _known_part(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in _ENTRY_KEYS if entry.get(key) is not None}


#: The id that LoRAs are listed under: the shortest of those that say what it is.
LORA_BASE: Final = "flux-schnell-lora"
#: The owner under which ids without one are listed where every model has an owner, as at Replicate.
OWNER: Final = "schnell"
_SCALED: Final = re.compile(r"(?s)(.+)@([-+]?(?:[0-9]{1,4}(?:\.[0-9]{0,16})?|\.[0-9]{1,16}))")
#: As many characters as a record has room for.
_LONGEST_ID: Final = 200


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The id to keep in the record, and the LoRA that it names (None: none). `scaled`: with a scale of its own.

    `warnings` say that another model was asked for.
    """

    id: str
    lora: LoraRef | None = None
    scaled: bool = False
    warnings: tuple[str, ...] = ()

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


def choose_model(model: ServedModel, name: str, lowest_scale: float = 0.0) -> ModelChoice | None:
    """What `name` means; None for a model that is not served. Whether there is such a LoRA is not looked up.

    Its scale is `lowest_scale` at least, as in the fields of the same API; an operator's alias may be lower.

    Raises:
        InvalidFieldError: its scale is out of range, or what it names can be no LoRA.
    """
    name = name.strip()
    if (target := model.aliases.get(name)) and (
        chosen := choose_model(replace(model, aliases={}), target, MIN_LORA_SCALE)
    ):
        return replace(chosen, warnings=(f"{name} is not served here: {chosen.id} drew, as the operator says",))
    bare = name.removeprefix(f"{OWNER}/")
    for text in (name, bare):
        if found := model.find(text):
            return ModelChoice(found)
        base, colon, reference = text.partition(":")
        if colon and reference.strip() and (found := model.find(base)):
            return _with_lora(found, reference.strip(), lowest_scale)
    return None


def lora_ids(found: Iterable[LibraryLora]) -> Iterator[str]:
    """The id of each LoRA of the library, as lists of models show it."""
    for lora in found:
        yield f"{LORA_BASE}:{lora.name}"


def _with_lora(base: str, reference: str, lowest_scale: float) -> ModelChoice:
    match = _SCALED.fullmatch(reference)
    scale = float(match[2]) if match else DEFAULT_LORA_SCALE
    if not lowest_scale <= scale <= MAX_LORA_SCALE:
        problem = f"the scale after @ must be {show_range(lowest_scale, MAX_LORA_SCALE)}, got {scale:g}"
        raise InvalidFieldError(FieldProblem("model", problem))
    lora = LoraRef(match[1].strip() if match else reference, scale, "model")
    parse_reference(lora.reference, "model")
    shown = f"{base}:{reference}"
    # an address may hold a token, and has no place in lists of records
    kept = base if "://" in reference or len(shown) > _LONGEST_ID else shown
    return ModelChoice(kept, lora, scaled=match is not None)
