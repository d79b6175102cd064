"""A LoRA file's keys sorted into modules: which layers it acts on and in which form, read from the header alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from schnell.adapters.keys import PartName, SourceKey, split_key
from schnell.adapters.names import GUIDANCE_MODULES, Destination
from schnell.adapters.shape import LinearSize
from schnell.adapters.tensors import TensorEntry, TensorHeader, shorten
from schnell.errors import AdapterError

Kind = Literal["lora", "dora", "lokr", "loha", "diff", "bias"]
#: Ranks above 128 are brought down to it, at a cost that grows with their square.
_MAX_SOURCE_RANK: Final = 1024

#: Parts whose first axis is the rank; of several in a module, the first here decides.
_INNER: Final[tuple[PartName, ...]] = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
_LOHA: Final[frozenset[PartName]] = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
#: Factors of one product: columns of the first must match rows of the second.
_PAIRS: Final[tuple[tuple[PartName, PartName], ...]] = (
    ("up", "down"),
    ("hada_w1_a", "hada_w1_b"),
    ("hada_w2_a", "hada_w2_b"),
    ("lokr_w1_a", "lokr_w1_b"),
    ("lokr_w2_a", "lokr_w2_b"),
)
#: The sets of parts that make up a module, and its form. `alpha` and `lokr_rows` may come with any.
_ALTERNATIVES: Final[tuple[tuple[frozenset[PartName], Kind], ...]] = (
    (frozenset({"down", "up"}), "lora"),
    (frozenset({"down", "up", "magnitude"}), "dora"),
    (frozenset({"lokr_w1", "lokr_w2"}), "lokr"),
    (frozenset({"lokr_w1", "lokr_w2_a", "lokr_w2_b"}), "lokr"),
    (frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2"}), "lokr"),
    (frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}), "lokr"),
    (_LOHA, "loha"),
    (frozenset({"diff"}), "diff"),
    (frozenset({"diff_b"}), "bias"),
)


@dataclass(frozen=True, slots=True)
class SourceModule:
    """One layer that the file acts on: its tensors by part, and the diffusers layers that it stands for."""

    prefix: str
    name: str
    kind: Kind
    destination: Destination
    tensors: Mapping[PartName, TensorEntry]

    @property
    def rank(self) -> int | None:
        """The inner dimension, where the form has one."""
        for part in _INNER:
            if entry := self.tensors.get(part):
                return entry.shape[0]
        return None

    @property
    def size(self) -> LinearSize:
        """The source layer's output and input features, as its factors' shapes say.

        -1 outputs: a LoKr part of which `lokr_rows` takes some rows; how many, the header does not tell.
        """
        shapes = {part: entry.shape for part, entry in self.tensors.items()}
        match self.kind:
            case "lora" | "dora":
                return LinearSize(shapes["up"][0], shapes["down"][1])
            case "loha":
                return LinearSize(shapes["hada_w1_a"][0], shapes["hada_w1_b"][1])
            case "lokr":
                left = shapes.get("lokr_w1") or (shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1])
                right = shapes.get("lokr_w2") or (shapes["lokr_w2_a"][0], shapes["lokr_w2_b"][1])
                rows = self.tensors.get("lokr_rows")
                return LinearSize(left[0] * right[0] if rows is None else -1, left[1] * right[1])
            case "diff":
                return LinearSize(shapes["diff"][0], shapes["diff"][1])
            case "bias":
                return LinearSize(shapes["diff_b"][0], 1)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A LoRA file's modules; keys that name no layer of FLUX.1; and modules of the guidance embedder, left out."""

    header: TensorHeader
    modules: tuple[SourceModule, ...]
    unknown: tuple[SourceKey | str, ...]
    guidance: tuple[str, ...]


def sort_keys(header: TensorHeader) -> SourceFile:
    """Sort a file's keys into modules. Keys that name no layer are listed, not refused.

    Raises:
        AdapterError: a module lacks a tensor, has one twice, or its tensors' shapes contradict each other.
    """
    unknown: list[SourceKey | str] = []
    guidance: set[str] = set()
    groups: dict[tuple[str, str], list[SourceKey]] = {}
    for key in header.entries:
        parsed = split_key(key)
        if parsed is None or parsed.destination is None:
            unknown.append(parsed or key)
        elif parsed.destination.parts[0].module in GUIDANCE_MODULES:
            guidance.add(f"{parsed.prefix}{parsed.module}")
        else:
            groups.setdefault((parsed.prefix, parsed.module), []).append(parsed)
    if unknown:
        # a module without what is not understood may be incomplete: what is not understood is the reason to tell
        modules = tuple(module for keys in groups.values() for module in _whole_modules(header, keys))
        return SourceFile(header, modules, tuple(unknown), tuple(sorted(guidance)))
    modules = tuple(module for keys in groups.values() for module in _modules(header, keys))
    _refuse_doubles(modules)
    return SourceFile(header, modules, tuple(unknown), tuple(sorted(guidance)))


def _whole_modules(header: TensorHeader, keys: Iterable[SourceKey]) -> tuple[SourceModule, ...]:
    """The modules of these keys; none where they are incomplete or contradict each other."""
    try:
        return tuple(_modules(header, keys))
    except AdapterError:
        return ()


def _modules(header: TensorHeader, keys: Iterable[SourceKey]) -> Iterable[SourceModule]:
    tensors: dict[PartName, TensorEntry] = {}
    first = None
    for key in keys:
        first = first or key
        if key.part in tensors:
            raise AdapterError(f"{shorten(first.prefix + first.module)} has its {key.part} twice")
        tensors[key.part] = header.entries[key.key]
    if first is None or first.destination is None:
        return
    # a bias difference may come beside any form; all zeros, as some trainers write it, it changes nothing
    bias = tensors.pop("diff_b", None)
    sets = [tensors] if tensors else []
    if bias is not None:
        sets.append({"diff_b": bias})
    for parts in sets:
        yield _check_shapes(SourceModule(first.prefix, first.module, _kind(first, parts), first.destination, parts))


def _kind(key: SourceKey, parts: Mapping[PartName, TensorEntry]) -> Kind:
    found = frozenset(parts) - {"alpha", "lokr_rows"}
    for needed, kind in _ALTERNATIVES:
        if found == needed:
            return kind
    where = shorten(key.prefix + key.module)
    if "magnitude" in found and found & (_LOHA | {"lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w2_a"}):
        raise AdapterError(f"{where}: DoRA over LoHa or LoKr is not supported")
    raise AdapterError(f"{where} is incomplete: it has only {', '.join(sorted(found)) or 'alpha'}")


def _check_shapes(module: SourceModule) -> SourceModule:
    where = shorten(module.prefix + module.name)
    tensors = {part: _flat_convolution(where, entry) for part, entry in module.tensors.items()}
    module = SourceModule(module.prefix, module.name, module.kind, module.destination, tensors)
    for part, entry in tensors.items():
        if part in {"alpha", "diff_b", "magnitude", "lokr_rows"}:
            continue
        if len(entry.shape) != 2 or 0 in entry.shape:
            raise AdapterError(f"{where}: {part} has shape {list(entry.shape)}, not [rows, columns]")
    for left, right in _PAIRS:
        a, b = tensors.get(left), tensors.get(right)
        if a and b and a.shape[1] != b.shape[0]:
            raise AdapterError(f"{where}: the ranks of {left} {list(a.shape)} and {right} {list(b.shape)} differ")
    _check_rank(where, module)
    return module


def _check_rank(where: str, module: SourceModule) -> None:
    rank = module.rank
    if rank is not None and rank > _MAX_SOURCE_RANK:
        raise AdapterError(f"{where} has rank {rank}; at most {_MAX_SOURCE_RANK} is read")
    alpha = module.tensors.get("alpha")
    if alpha and alpha.shape not in {(), (1,)}:
        raise AdapterError(f"{where}: alpha has shape {list(alpha.shape)}, not one number")
    loha = module.tensors
    if module.kind == "loha" and (
        loha["hada_w1_a"].shape != loha["hada_w2_a"].shape or loha["hada_w1_b"].shape != loha["hada_w2_b"].shape
    ):
        raise AdapterError(f"{where}: the two factors of LoHa differ in shape")


def _flat_convolution(where: str, entry: TensorEntry) -> TensorEntry:
    # some trainers write linear layers as 1x1 convolutions, [out, in, 1, 1]
    if len(entry.shape) < 4:
        return entry
    if entry.shape[2:] != (1, 1):
        raise AdapterError(f"{where} targets a convolution (shape {list(entry.shape)}); FLUX.1's layers are linear")
    return TensorEntry(entry.dtype, entry.shape[:2], entry.start, entry.stop)


def _refuse_doubles(modules: Iterable[SourceModule]) -> None:
    seen: dict[tuple[str, str, bool], str] = {}
    for module in modules:
        name = module.prefix + module.name
        for part in module.destination.parts:
            place = (module.destination.component, part.module, module.kind == "bias")
            if place in seen:
                raise AdapterError(f"{shorten(seen[place])} and {shorten(name)} both target {part.module}")
            seen[place] = name
