"""A source module's numbers turned into canonical tensors.

Three things happen on the way: alpha / rank is multiplied in; a fused layer (q, k and v as one) is split into the
diffusers layers it stands for; and what is no low-rank or Kronecker product yet is made one of rank 128 or less.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import Final

import ml_dtypes
import numpy as np

from schnell.adapters.decompose import MAX_DENSE_ELEMENTS, MAX_RANK, MIN_ENERGY, Decomposition, compress, decompose
from schnell.adapters.forms import Floats
from schnell.adapters.keys import PartName
from schnell.adapters.names import Component, Part
from schnell.adapters.provenance import PeftScaling
from schnell.adapters.source import SourceModule
from schnell.adapters.tensors import FLOATS, Array, read_tensor, shorten
from schnell.errors import AdapterError

#: Of a delta. Inputs of some 1e4 and a strength of 3 make outputs of 1e19 of it, whose squares float32 and bfloat16
#: just hold; the LoRAs that people train have norms below 1e4.
_MAX_NORM: Final = 1e14
#: Canonical types besides float32.
_COMPACT: Final = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


@dataclass(frozen=True, slots=True, eq=False)
class CanonicalModule:
    """One module's canonical tensors by part, and its rank (0: a Kronecker product of whole factors).

    `energy` is below 1 where an approximation was taken.
    """

    component: Component
    module: str
    tensors: Mapping[str, Array]
    rank: int
    energy: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Numbers:
    """A source module's tensors in memory, in their own types, and the factor of its delta."""

    where: str
    source: SourceModule
    tensors: Mapping[PartName, Array]
    scale: float

    def get(self, part: PartName) -> Floats:
        return np.asarray(self.tensors[part], np.float32)


def convert_module(
    file: BufferedReader, module: SourceModule, scalings: Mapping[str, PeftScaling]
) -> Iterator[CanonicalModule]:
    """Yield the canonical modules that a source module stands for; none where its delta is all zeros.

    Raises:
        AdapterError: NaN or infinity, a type that is no float, a delta that no rank of at most 128 holds to 99.9%,
            or a form that cannot run beside untouched weights.
    """
    numbers = _read(file, module, scalings)
    with np.errstate(over="ignore"):  # what overflows is refused by name in `_checked`, not warned of
        for part in module.destination.parts:
            yield from _convert_part(numbers, part)


def _convert_part(numbers: _Numbers, part: Part) -> Iterator[CanonicalModule]:
    match numbers.source.kind:
        case "lora" | "dora":
            yield from _low_rank(numbers, part)
        case "lokr":
            yield from _kronecker(numbers, part)
        case "loha":
            yield from _hadamard(numbers, part)
        case "diff":
            yield from _dense(numbers, part, numbers.get("diff")[_rows(numbers, part)])
        case "bias":
            if np.any(numbers.get("diff_b")):
                raise AdapterError(f"{numbers.where}: it changes a bias (diff_b), which cannot run as an adapter")


def _read(file: BufferedReader, module: SourceModule, scalings: Mapping[str, PeftScaling]) -> _Numbers:
    where = shorten(module.prefix + module.name)
    tensors: dict[PartName, Array] = {}
    for part, entry in module.tensors.items():
        if part not in {"lokr_rows", "alpha"} and entry.dtype not in FLOATS:
            raise AdapterError(f"{where}: {part} is of type {entry.dtype}, not a floating-point type")
        if part == "alpha" and module.rank is None:
            continue  # it scales by alpha / rank: without a rank it means nothing, and may hold anything
        values = read_tensor(file, entry)
        if not np.all(np.isfinite(np.asarray(values, np.float32))):
            raise AdapterError(f"{where}: {part} holds values that are not numbers (NaN or infinity)")
        tensors[part] = values
    return _Numbers(where, module, tensors, _scale(module, tensors, scalings))


def _scale(module: SourceModule, tensors: Mapping[PartName, Array], scalings: Mapping[str, PeftScaling]) -> float:
    """alpha / rank, by the module's own alpha or PEFT's; 1 for forms without a rank, or where no alpha is stated."""
    rank = module.rank
    if module.kind in {"diff", "bias"} or rank is None:
        return 1.0
    if "alpha" in tensors:
        return float(tensors["alpha"].reshape(-1)[0]) / rank
    scaling = scalings.get(module.destination.component)
    return scaling.scale(module.name, rank) if scaling else 1.0


def _block_rows(numbers: _Numbers) -> int:
    out, blocks = numbers.source.size.out_features, numbers.source.destination.row_blocks
    if out % blocks:
        raise AdapterError(f"{numbers.where}: {out} outputs cannot be split into {blocks} equal parts")
    return out // blocks


def _rows(numbers: _Numbers, part: Part) -> Array:
    """The row numbers of the fused layer that `part` takes, in order."""
    block = _block_rows(numbers)
    return np.concatenate([np.arange(start * block, stop * block) for start, stop in part.blocks])


def _low_rank(numbers: _Numbers, part: Part) -> Iterator[CanonicalModule]:
    rows = _rows(numbers, part)
    up = numbers.get("up")[rows]
    down = numbers.tensors["down"]
    # trainers that split q, k and v fuse them again with a block of zeros for each other part: without those columns a
    # part's rank is its own, and nothing of its product changes
    used = np.flatnonzero(up.any(axis=0))
    if "magnitude" in numbers.tensors:
        yield _decomposed_weight(numbers, part, rows, up, down)
    elif len(used) and numbers.scale:
        up, down = np.asarray(up[:, used] * np.float32(numbers.scale), np.float32), down[used]
        if len(used) > MAX_RANK:
            kept = compress(up, np.asarray(down, np.float32))
            yield _thin(numbers, part, kept, f"its rank {len(used)} cannot be brought to {MAX_RANK}")
        elif np.any(down):
            yield _module(numbers, part, {"lora_A": _like(down), "lora_B": _compact(numbers, up, "up")}, len(used))


def _decomposed_weight(numbers: _Numbers, part: Part, rows: Array, up: Floats, down: Array) -> CanonicalModule:
    magnitude = numbers.get("magnitude")
    out = numbers.source.size.out_features
    if magnitude.size != out or magnitude.shape not in {(out,), (out, 1), (out, 1, 1, 1)}:
        raise AdapterError(
            f"{numbers.where}: its DoRA magnitudes have shape {list(magnitude.shape)}, one per input; "
            f"only one per output, [{out}] or [{out}, 1], can run beside untouched weights"
        )
    rank = int(down.shape[0])
    if rank > MAX_RANK:
        raise AdapterError(f"{numbers.where}: DoRA of rank {rank}; at most {MAX_RANK} is served")
    # a DoRA whose product is all zeros is kept: its magnitudes may still differ from the weights' norms
    tensors = {
        "lora_A": _like(down),
        "lora_B": _compact(numbers, up * np.float32(numbers.scale), "up"),
        "dora_magnitude": magnitude.reshape(-1)[rows],
    }
    return _module(numbers, part, tensors, rank)


def _kronecker(numbers: _Numbers, part: Part) -> Iterator[CanonicalModule]:
    left = _checked(numbers, _factor(numbers, "lokr_w1", "lokr_w1_a", "lokr_w1_b") * np.float32(numbers.scale))
    if not left.any():
        return
    right = _right(numbers)
    height = next(iter(right.values())).shape[0]  # rows of the product that each row of `left` makes
    windows = _row_windows(numbers, part, left.shape[0] * height)
    # rows taken out of order (a modulation's halves change places) stay a product only if cut between rows of `left`
    if len(windows) > 1 and any(edge % height for window in windows for edge in window):
        full = np.kron(left, _factor(numbers, "lokr_w2", "lokr_w2_a", "lokr_w2_b"))
        yield from _dense(numbers, part, full[_rows(numbers, part)])
        return
    pieces = [left[start // height : -(-stop // height)] for start, stop in windows]
    tensors: dict[str, Array] = {"lokr_w1": np.concatenate(pieces)} | right
    offset, length = windows[0][0] % height, sum(stop - start for start, stop in windows)
    if offset or length != tensors["lokr_w1"].shape[0] * height:
        tensors["lokr_rows"] = np.array([offset, offset + length], np.int64)
    yield _module(numbers, part, tensors, right["lokr_w2_a"].shape[1] if "lokr_w2_a" in right else 0)


def _row_windows(numbers: _Numbers, part: Part, rows: int) -> tuple[tuple[int, int], ...]:
    """The row ranges (start, stop) of the whole product that `part` takes; a canonical file states its own."""
    if "lokr_rows" not in numbers.tensors:
        block = _block_rows(numbers)
        return tuple((start * block, stop * block) for start, stop in part.blocks)
    window = numbers.tensors["lokr_rows"].reshape(-1)
    if len(window) != 2 or not 0 <= window[0] < window[1] <= rows:
        raise AdapterError(f"{numbers.where}: lokr_rows is not a start and an end within {rows} rows")
    return ((int(window[0]), int(window[1])),)


def _right(numbers: _Numbers) -> dict[str, Array]:
    if "lokr_w2" in numbers.tensors:
        return {"lokr_w2": _like(numbers.tensors["lokr_w2"])}
    return {name: _like(numbers.tensors[name]) for name in ("lokr_w2_a", "lokr_w2_b")}


def _factor(numbers: _Numbers, whole: PartName, left: PartName, right: PartName) -> Floats:
    return numbers.get(whole) if whole in numbers.tensors else numbers.get(left) @ numbers.get(right)


def _hadamard(numbers: _Numbers, part: Part) -> Iterator[CanonicalModule]:
    rows = _rows(numbers, part)
    first_up, second_up = numbers.get("hada_w1_a")[rows], numbers.get("hada_w2_a")[rows]
    first_down, second_down = numbers.get("hada_w1_b"), numbers.get("hada_w2_b")
    rank = first_down.shape[0]
    # (A1 B1) * (A2 B2), elementwise, is one product of rank r*r: columns of A1 times columns of A2, rows of B1 times
    # rows of B2 (a Khatri-Rao product)
    if rank * rank <= MAX_RANK:
        up = np.einsum("oi,oj->oij", first_up, second_up).reshape(len(rows), -1) * np.float32(numbers.scale)
        down = np.einsum("in,jn->ijn", first_down, second_down).reshape(rank * rank, -1)
        if up.any() and down.any():
            yield _module(numbers, part, {"lora_A": down, "lora_B": _checked(numbers, up)}, rank * rank)
        return
    _check_dense(numbers, len(rows))
    # in place: the delta of FLUX.1's largest diffusers layer takes 226 MB
    product = first_up @ first_down
    product *= second_up @ second_down
    product *= np.float32(numbers.scale)
    yield from _dense(numbers, part, product)


def _dense(numbers: _Numbers, part: Part, delta: Floats) -> Iterator[CanonicalModule]:
    _check_dense(numbers, delta.shape[0])
    if not _checked(numbers, delta).any():
        return
    reason = f"as a product of rank {MAX_RANK} its full difference cannot be held"
    yield _thin(numbers, part, decompose(delta), reason)


def _check_dense(numbers: _Numbers, rows: int) -> None:
    if rows * numbers.source.size.in_features > MAX_DENSE_ELEMENTS:
        raise AdapterError(f"{numbers.where}: a delta of {numbers.source.size} is too large to convert")


def _thin(numbers: _Numbers, part: Part, kept: Decomposition, reason: str) -> CanonicalModule:
    if not kept.sufficient:
        raise AdapterError(
            f"{numbers.where}: {reason}: only {kept.energy:.2%} of its energy would remain, {MIN_ENERGY:.1%} is needed"
        )
    tensors = {"lora_A": kept.down, "lora_B": _checked(numbers, kept.up)}
    return _module(numbers, part, tensors, kept.down.shape[0], kept.energy)


def _module(
    numbers: _Numbers, part: Part, tensors: Mapping[str, Array], rank: int, energy: float = 1.0
) -> CanonicalModule:
    _check_range(numbers, tensors)
    return CanonicalModule(numbers.source.destination.component, part.module, tensors, rank, energy)


def _check_range(numbers: _Numbers, tensors: Mapping[str, Array]) -> None:
    """Refuse what the engine cannot compute with, although every number of it is finite.

    A delta's norm is at most the product of its factors'; a norm layer squares what comes out of it.
    """
    factors = [values for name, values in tensors.items() if name not in {"dora_magnitude", "lokr_rows"}]
    norms = [float(np.linalg.norm(np.asarray(values, np.float32))) for values in factors]
    largest = math.prod(norms)
    if "dora_magnitude" in tensors:
        largest = max(largest, float(np.max(tensors["dora_magnitude"], initial=0)))
    if not largest <= _MAX_NORM:
        raise AdapterError(
            f"{numbers.where}: its values are so large (a norm of {largest:.3g}, at most {_MAX_NORM:.0e} is served) "
            "that the engine's arithmetic overflows"
        )


def _like(values: Array) -> Array:
    """The values in their own type if that is a canonical one; float8 as float16, all others rounded to float32."""
    if values.dtype in _COMPACT or values.dtype == np.float32:
        return values
    return values.astype(np.float16 if values.dtype.itemsize == 1 else np.float32)


def _compact(numbers: _Numbers, values: Floats, part: PartName) -> Array:
    """Scaled values in the type of the source's `part` if that loses nothing, else in float32."""
    _checked(numbers, values)
    dtype = _like(numbers.tensors[part][:0]).dtype
    if dtype == np.float32:
        return values
    narrow = values.astype(dtype)
    return narrow if np.array_equal(narrow.astype(np.float32), values) else values


def _checked(numbers: _Numbers, values: Floats) -> Floats:
    if not math.isfinite(numbers.scale) or not np.all(np.isfinite(values)):
        raise AdapterError(f"{numbers.where}: its values overflow once scaled by alpha / rank")
    return values
