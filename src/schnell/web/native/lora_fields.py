"""The fields of a request that name LoRAs: `lora_weights`, `extra_lora`, and the list `loras`.

The list is that of fal's and of ComfyUI's APIs: `[{"path": "owner/name", "scale": 0.8}, …]`, or names alone.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from schnell.spec import DEFAULT_LORA_SCALE, MAX_LORA_SCALE, MAX_LORAS, LoraRef
from schnell.web.fields import Fields

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
        values[_LIST] = [
            entry if isinstance(entry, str) else {key: entry[key] for key in _ENTRY_KEYS if entry.get(key) is not None}
            for entry in values[_LIST]
        ]
    return values
