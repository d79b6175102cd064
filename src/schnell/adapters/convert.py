"""A LoRA file of any layout in, one canonical file out. The steps are in `_convert`."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from schnell.adapters.archive import ArchiveContents, extract_lora, is_archive
from schnell.adapters.canonical import CanonicalInfo, check_fits, form_of, read_adapter, read_info, target_of
from schnell.adapters.contradictions import find_contradiction, list_doubts
from schnell.adapters.decompose import MAX_RANK
from schnell.adapters.diagnosis import describe_guidance, describe_layout, describe_unknown, find_width, guess_model
from schnell.adapters.factors import convert_module
from schnell.adapters.fit import Target, find_misfit, targets_of_source
from schnell.adapters.forms import Dora, Form, Lokr, LowRank
from schnell.adapters.provenance import (
    MAX_CONFIG_BYTES,
    PeftScaling,
    Provenance,
    parse_peft_config,
    read_peft_scaling,
    read_provenance,
)
from schnell.adapters.shape import ModelShape
from schnell.adapters.source import SourceFile, sort_keys
from schnell.adapters.tensors import TensorWriter, read_header
from schnell.errors import AdapterError

#: A LoRA of rank 128 on every linear layer of FLUX.1 and its text encoders, in float32, has 3.8 GB.
DEFAULT_MAX_BYTES: Final = 4 * 2**30
#: A canonical tensor's name takes up to 80 bytes of the header; its dtype, shape and offsets up to 100.
_HEADER_BYTES_PER_TENSOR: Final = 220
#: For the metadata that are not the source's own: counts, layout, warnings.
_METADATA_ROOM: Final = 4096
_FORM_NAMES: Final[dict[type[Form], str]] = {LowRank: "LoRA", Dora: "DoRA", Lokr: "LoKr"}


@dataclass(frozen=True, slots=True)
class ConvertedAdapter:
    """A canonical file, the hash that it is filed under, and its metadata."""

    path: Path
    sha256: str
    info: CanonicalInfo


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A LoRA file ready to be read: itself, or the one taken out of an archive, with what lay beside it."""

    path: Path
    peft_config: Mapping[str, Any] | None
    trigger_word: str | None


def convert_adapter(
    source: Path,
    folder: Path,
    *,
    shape: ModelShape | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    peft_config: Mapping[str, Any] | None = None,
) -> ConvertedAdapter:
    """Convert the LoRA at `source` to `folder/<sha256 of source>.safetensors`, or find it there already.

    `source` is a .safetensors file in any layout that docs/lora-files.md lists, or Replicate's weights tar. PEFT's
    `adapter_config.json`, given as `peft_config` or lying beside a file named `adapter_model.safetensors`, sets the
    scale and enters the hash.
    With `shape`, the file must fit that model. Memory holds one layer at a time; a failure leaves nothing in `folder`.

    Raises:
        AdapterError: the file is not understood in whole, changes nothing, is hostile or damaged, or does not fit.
    """
    sha256 = hash_source(source, max_bytes, peft_config)
    path = folder / f"{sha256}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with open_source(source, max_bytes, folder, peft_config) as opened:
            _convert(opened, path, sha256, shape)
    if shape is not None:
        check_fits(read_adapter(path), shape)
    return ConvertedAdapter(path, sha256, read_info(path))


def hash_source(source: Path, max_bytes: int = DEFAULT_MAX_BYTES, peft_config: Mapping[str, Any] | None = None) -> str:
    """The SHA-256, in hexadecimal, that a source file is filed under: of its bytes, and of PEFT's configuration if any.

    Raises:
        AdapterError: the file is missing, unreadable, or larger than `max_bytes`.
    """
    try:
        size = source.stat().st_size
        if not source.is_file():
            raise AdapterError(f"{source.name} is not a file")
        if size > max_bytes:
            raise AdapterError(f"the file has {size:,} bytes; at most {max_bytes:,} are read")
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise AdapterError(f"the file cannot be read: {error.strerror or error}") from error
    config = peft_config or _config_beside(source)
    if config is not None:
        # the same weights under another alpha are another LoRA
        digest.update(b"\0adapter_config.json\0" + json.dumps(config, sort_keys=True).encode())
    return digest.hexdigest()


@contextmanager
def open_source(
    source: Path, max_bytes: int, scratch: Path | None = None, peft_config: Mapping[str, Any] | None = None
) -> Iterator[OpenedFile]:
    """Make a LoRA file readable: an archive's LoRA is unpacked into a folder under `scratch` that is removed after.

    Raises:
        AdapterError: the archive is hostile or damaged, or PEFT's configuration is not JSON.
    """
    if not is_archive(source):
        yield OpenedFile(source, peft_config or _config_beside(source), None)
        return
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=scratch) as unpacked:
        target = Path(unpacked) / "lora.safetensors"
        contents: ArchiveContents = extract_lora(source, target, max_bytes)
        yield OpenedFile(target, contents.peft_config, contents.trigger_word)


def find_provenance(source: SourceFile, opened: OpenedFile) -> Provenance:
    """What the file's metadata state, with the trigger word that lay beside it in an archive first."""
    found = read_provenance(source.header.metadata)
    beside = (opened.trigger_word,) if opened.trigger_word else ()
    return replace(found, trigger_words=tuple(dict.fromkeys((*beside, *found.trigger_words))))


def find_problem(
    source: SourceFile, shape: ModelShape | None, peft_config: Mapping[str, Any] | None = None
) -> str | None:
    """Why the file cannot be served, as far as its header shows; None if it shows no reason."""
    if not source.header.entries:
        return "the file holds no tensors"
    if source.unknown:
        return describe_unknown(source)
    if problem := find_contradiction(source.header.metadata, peft_config):
        return f"this LoRA is not for this model: {problem}"
    if all(module.kind == "bias" for module in source.modules):
        return "nothing in this file acts on a layer of this model"
    misfit = find_misfit(targets_of_source(source), shape, find_width(source), guess_model(source))
    return f"this LoRA does not fit the model: {misfit}" if misfit else None


def _convert(opened: OpenedFile, path: Path, sha256: str, shape: ModelShape | None) -> None:
    source = sort_keys(read_header(opened.path))
    if problem := find_problem(source, shape, opened.peft_config):
        raise AdapterError(problem)
    scalings = read_peft_scaling(source.header.metadata, opened.peft_config)
    with TensorWriter(path, _header_room(source)) as writer:
        written = tuple(_write_modules(opened.path, source, scalings, writer))
        if not written:
            raise AdapterError("this LoRA changes nothing: all its deltas are zero")
        # again, now that the rows that a LoKr part takes are known, not only what the header claims
        targets = [module.target for module in written]
        if problem := find_misfit(targets, shape, find_width(source), guess_model(source)):
            raise AdapterError(f"this LoRA does not fit the model: {problem}")
        writer.finish(_describe(source, opened, sha256, written).to_metadata())


def _header_room(source: SourceFile) -> int:
    """Bytes that the header will need at most: its entries, and the metadata that come from the source's."""
    entries = sum(len(module.destination.parts) * (len(module.tensors) + 1) for module in source.modules)
    # dumped twice, as in the header: values are JSON inside of JSON, and quotes and backslashes grow each time
    metadata = json.dumps(json.dumps(asdict(read_provenance(source.header.metadata))))
    return entries * _HEADER_BYTES_PER_TENSOR + len(metadata) + _METADATA_ROOM


@dataclass(frozen=True, slots=True)
class _Written:
    target: Target
    form: str
    rank: int
    energy: float


def _write_modules(
    path: Path, source: SourceFile, scalings: Mapping[str, PeftScaling], writer: TensorWriter
) -> Iterator[_Written]:
    with path.open("rb") as file:
        for module in source.modules:
            for converted in convert_module(file, module, scalings):
                name = f"{converted.component}.{converted.module}"
                form = form_of(name, converted.tensors)
                for part, values in converted.tensors.items():
                    writer.add(f"{name}.{part}", values)
                yield _Written(target_of(name, form), _FORM_NAMES[type(form)], form.rank, converted.energy)


def _describe(source: SourceFile, opened: OpenedFile, sha256: str, written: tuple[_Written, ...]) -> CanonicalInfo:
    provenance = find_provenance(source, opened)
    return CanonicalInfo(
        source_sha256=sha256,
        layout=describe_layout(source),
        made_for=guess_model(source),
        rank=max(module.rank for module in written),
        width=find_width(source),
        modules=dict(Counter(module.target.component for module in written)),
        forms=dict(Counter(module.form for module in written)),
        trigger_words=provenance.trigger_words,
        base_model=provenance.base_model,
        licence=provenance.licence,
        warnings=tuple(_warnings(source, opened, written)),
    )


def _warnings(source: SourceFile, opened: OpenedFile, written: tuple[_Written, ...]) -> Iterator[str]:
    yield from list_doubts(source.header.metadata, opened.peft_config)
    if source.guidance:
        yield describe_guidance(source)
    approximate = [module.energy for module in written if module.energy < 1]
    if approximate:
        yield (
            f"{len(approximate)} layers are held as products of rank at most {MAX_RANK}, "
            f"with at least {min(approximate):.2%} of their energy"
        )
    unused = sum(len(module.destination.parts) for module in source.modules if module.kind != "bias") - len(written)
    if unused:
        yield f"{unused} layers whose delta is all zeros were left out"
    if any(module.kind == "bias" for module in source.modules):
        yield "bias differences (diff_b) that are all zeros were left out"


def _config_beside(source: Path) -> dict[str, Any] | None:
    config = source.with_name("adapter_config.json")
    if source.name != "adapter_model.safetensors" or not config.is_file():
        return None
    if config.stat().st_size > MAX_CONFIG_BYTES:
        raise AdapterError("adapter_config.json is larger than 64 KiB")
    return parse_peft_config(config.read_bytes())
