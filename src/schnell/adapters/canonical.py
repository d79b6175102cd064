"""The canonical adapter file, the one form in which the engine reads LoRAs.

It is a safetensors file with tensors named `<component>.<module>.<part>`: component is `transformer`, `text_encoder`
(CLIP) or `text_encoder_2` (T5), module the layer's path in diffusers or transformers, and part one of `lora_A` [r, in],
`lora_B` [out, r], `dora_magnitude` [out], `lokr_w1` [a, b], `lokr_w2` [c, d] (or `lokr_w2_a` [c, r] and `lokr_w2_b`
[r, d]), `lokr_rows` (start, stop). Scales are multiplied in. The metadata hold what `CanonicalInfo` lists.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, cast

import numpy as np

from schnell.adapters.fit import Target, find_misfit
from schnell.adapters.forms import Dora, Form, Lokr, LowRank
from schnell.adapters.names import COMPONENTS, Component
from schnell.adapters.shape import ModelShape
from schnell.adapters.tensors import DTYPES, Array, TensorEntry, read_header, shorten
from schnell.errors import AdapterError

FORMAT: Final = "schnell-adapter-1"
PARTS: Final = frozenset(
    {"lora_A", "lora_B", "dora_magnitude", "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_rows"}
)


@dataclass(frozen=True, slots=True)
class CanonicalInfo:
    """The metadata of a canonical file: where it came from, and how large it is.

    `source_sha256` is the hash that it is filed under, `layout` and `made_for` are in words for people. `rank` is the
    largest rank (0 where all are Kronecker products of whole factors); `width` the hidden width it is made for (None
    for text encoders only); `modules` counts layers by component, `forms` by form (LoRA, DoRA, LoKr).
    """

    source_sha256: str
    layout: str
    made_for: str
    rank: int
    width: int | None
    modules: Mapping[str, int]
    forms: Mapping[str, int]
    trigger_words: tuple[str, ...] = ()
    base_model: tuple[str, ...] = ()
    licence: str | None = None
    warnings: tuple[str, ...] = ()

    def to_metadata(self) -> dict[str, str]:
        """As safetensors metadata, whose values are strings: lists, objects and None as JSON."""
        return {
            "format": FORMAT,
            "source_sha256": self.source_sha256,
            "layout": self.layout,
            "made_for": self.made_for,
            "rank": str(self.rank),
            "width": json.dumps(self.width),
            "modules": json.dumps(dict(self.modules), sort_keys=True),
            "forms": json.dumps(dict(self.forms), sort_keys=True),
            "trigger_words": json.dumps(self.trigger_words),
            "base_model": json.dumps(self.base_model),
            "licence": json.dumps(self.licence),
            "warnings": json.dumps(self.warnings),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "CanonicalInfo":
        """Read the metadata back.

        Raises:
            AdapterError: they are not a canonical file's.
        """
        if metadata.get("format") != FORMAT:
            raise AdapterError("this is not a converted LoRA; convert it first")
        try:
            return cls(
                source_sha256=metadata["source_sha256"],
                layout=metadata["layout"],
                made_for=metadata["made_for"],
                rank=int(metadata["rank"]),
                width=json.loads(metadata["width"]),
                modules=json.loads(metadata["modules"]),
                forms=json.loads(metadata["forms"]),
                trigger_words=tuple(json.loads(metadata["trigger_words"])),
                base_model=tuple(json.loads(metadata["base_model"])),
                licence=json.loads(metadata["licence"]),
                warnings=tuple(json.loads(metadata["warnings"])),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise AdapterError("the converted LoRA's metadata are damaged; convert it again") from error


@dataclass(frozen=True, slots=True, eq=False)
class CanonicalAdapter:
    """A canonical file opened for reading: the form of each layer, by its name `<component>.<module>`.

    The arrays are views of the memory-mapped file, read when they are used. `nbytes` counts the tensors' bytes.
    """

    path: Path
    info: CanonicalInfo
    modules: Mapping[str, Form]
    nbytes: int


def read_adapter(path: Path) -> CanonicalAdapter:
    """Open the canonical file at `path` without reading its tensors.

    Raises:
        AdapterError: the file is damaged or not canonical.
    """
    header = read_header(path)
    info = CanonicalInfo.from_metadata(header.metadata)
    # mapped, not read: a file of gigabytes costs memory only where its arrays are used
    data = np.memmap(path, np.uint8, "r")
    groups: dict[str, dict[str, Array]] = {}
    for name, entry in header.entries.items():
        module, _, part = name.rpartition(".")
        if part not in PARTS or module.partition(".")[0] not in COMPONENTS:
            raise AdapterError(f"{shorten(name)} is not a canonical tensor; convert the file again")
        groups.setdefault(module, {})[part] = _view(data, entry)
    modules = {module: form_of(module, parts) for module, parts in groups.items()}
    nbytes = sum(entry.stop - entry.start for entry in header.entries.values())
    return CanonicalAdapter(path, info, MappingProxyType(modules), nbytes)


def read_info(path: Path) -> CanonicalInfo:
    """The metadata of the canonical file at `path`. Raises as `read_adapter`."""
    return CanonicalInfo.from_metadata(read_header(path).metadata)


def check_fits(adapter: CanonicalAdapter, shape: ModelShape) -> None:
    """Check every layer of the adapter against the model's.

    Raises:
        AdapterError: made for another width, for more blocks, or a layer of another size; naming both figures.
    """
    targets = [target_of(name, form) for name, form in adapter.modules.items()]
    problem = find_misfit(targets, shape, adapter.info.width, adapter.info.made_for)
    if problem:
        raise AdapterError(f"this LoRA does not fit the model: {problem}")


def target_of(name: str, form: Form) -> Target:
    """The layer that the form under this canonical name acts on."""
    component, _, module = name.partition(".")
    return Target(cast("Component", component), module, form.size)


def _view(data: Array, entry: TensorEntry) -> Array:
    return data[entry.start : entry.stop].view(DTYPES[entry.dtype]).reshape(entry.shape)


def form_of(module: str, parts: Mapping[str, Array]) -> Form:
    """The form that a module's canonical tensors make up, by their part.

    Raises:
        AdapterError: they make up none.
    """
    found = frozenset(parts)
    if found == {"lora_A", "lora_B"}:
        return LowRank(parts["lora_A"], parts["lora_B"])
    if found == {"lora_A", "lora_B", "dora_magnitude"}:
        return Dora(parts["lora_A"], parts["lora_B"], parts["dora_magnitude"])
    if "lokr_w1" in found and ("lokr_w2" in found) != ({"lokr_w2_a", "lokr_w2_b"} <= found):
        return _kronecker(parts)
    raise AdapterError(f"{shorten(module)} is incomplete; convert the file again")


def _kronecker(parts: Mapping[str, Array]) -> Lokr:
    right = parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"]
    rows = parts.get("lokr_rows")  # stored only where they are not all
    start, stop = (0, parts["lokr_w1"].shape[0] * right.shape[0]) if rows is None else (int(rows[0]), int(rows[1]))
    return Lokr(
        parts["lokr_w1"],
        parts.get("lokr_w2"),
        parts.get("lokr_w2_a"),
        parts.get("lokr_w2_b"),
        start,
        stop - start,
    )
