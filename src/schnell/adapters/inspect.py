"""What a LoRA file is, judged by its header: nothing is converted, and no weight is read but single alphas."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from schnell.adapters.contradictions import list_doubts
from schnell.adapters.convert import (
    DEFAULT_MAX_BYTES,
    OpenedFile,
    find_problem,
    find_provenance,
    hash_source,
    open_source,
)
from schnell.adapters.diagnosis import describe_guidance, describe_layout, find_width, guess_model
from schnell.adapters.provenance import read_peft_scaling
from schnell.adapters.shape import ModelShape
from schnell.adapters.source import SourceFile, sort_keys
from schnell.adapters.tensors import read_header, read_tensor
from schnell.errors import AdapterError


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """A LoRA file in words and numbers. `problem` says why it cannot be served; None if its header shows no reason.

    `matched_keys` of `keys` name a layer of FLUX.1; `modules` counts the file's modules by component; `alpha` is None
    where the file has none, or several.
    """

    bytes: int
    sha256: str | None = None
    layout: str | None = None
    made_for: str | None = None
    keys: int = 0
    matched_keys: int = 0
    modules: Mapping[str, int] | None = None
    forms: Mapping[str, int] | None = None
    rank: int | None = None
    alpha: float | None = None
    width: int | None = None
    trigger_words: tuple[str, ...] = ()
    base_model: tuple[str, ...] = ()
    licence: str | None = None
    warnings: tuple[str, ...] = ()
    problem: str | None = None


def inspect_adapter(
    path: Path, *, shape: ModelShape | None = None, max_bytes: int = DEFAULT_MAX_BYTES
) -> AdapterReport:
    """Describe the LoRA at `path`; with `shape` also whether it fits that model. What is wrong is in `problem`.

    Raises:
        AdapterError: only where there is no file to read.
    """
    if not path.is_file():
        raise AdapterError(f"{path} is not a file")
    size = path.stat().st_size
    try:
        sha256 = hash_source(path, max_bytes)
        with open_source(path, max_bytes) as opened:
            return _report(opened, size, sha256, shape)
    except AdapterError as error:
        return AdapterReport(bytes=size, problem=error.message)


def _report(opened: OpenedFile, size: int, sha256: str, shape: ModelShape | None) -> AdapterReport:
    source = sort_keys(read_header(opened.path))
    provenance = find_provenance(source, opened)
    total = len(source.header.entries)
    return AdapterReport(
        bytes=size,
        sha256=sha256,
        layout=describe_layout(source),
        made_for=guess_model(source),
        keys=total,
        matched_keys=total - len(source.unknown),
        modules=dict(Counter(module.destination.component for module in source.modules)),
        forms=dict(Counter(module.kind for module in source.modules)),
        rank=max((module.rank or 0 for module in source.modules), default=None),
        alpha=_alpha(opened, source),
        width=find_width(source),
        trigger_words=provenance.trigger_words,
        base_model=provenance.base_model,
        licence=provenance.licence,
        warnings=(
            *list_doubts(source.header.metadata, opened.peft_config),
            *((describe_guidance(source),) if source.guidance else ()),
        ),
        problem=find_problem(source, shape, opened.peft_config),
    )


def _alpha(opened: OpenedFile, source: SourceFile) -> float | None:
    entries = [module.tensors["alpha"] for module in source.modules if "alpha" in module.tensors]
    with opened.path.open("rb") as file:
        alphas = {float(np.asarray(read_tensor(file, entry), np.float32).reshape(-1)[0]) for entry in entries}
    if not entries:
        scaling = read_peft_scaling(source.header.metadata, opened.peft_config).get("transformer")
        return scaling.alpha if scaling else None
    return alphas.pop() if len(alphas) == 1 else None
