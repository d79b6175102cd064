"""The safetensors container: read strictly, written tensor by tensor, both with bounded memory.

The format: eight bytes (header length, little endian), a JSON header, then the tensors' bytes without gaps
(https://github.com/huggingface/safetensors#format). It is read here and not by its own library because a refusal must
name what is wrong, because the header's size is bounded before anything is parsed, and because that library has no
writer that takes one tensor at a time.
"""

import json
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

from schnell.errors import AdapterError

Array = npt.NDArray[Any]

#: A file is anybody's, so a header is bounded before it is believed: as safetensors' own library does, which writes no
#: longer one. The fullest LoRAs of FLUX.1, its 742 linear layers in six tensors each, have 2 MB and a quarter of the
#: tensors; trainers put their whole list of captions into the metadata beside.
_MAX_HEADER_BYTES: Final = 100_000_000
_MAX_TENSORS: Final = 20_000
_MAX_NAME_LENGTH: Final = 256
#: 1x1 convolutions have four.
_MAX_DIMENSIONS: Final = 4
#: Of a size or an offset: far beyond any disk, and small enough for products of them to stay cheap.
_MAX_COUNT: Final = 2**48
#: Readers map the file and view the data in place, so it begins at a multiple of the widest type.
_ALIGNMENT: Final = 8

#: numpy's types by safetensors' names.
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    # of no LoRA's part, but a refusal must come far enough to name the part that has such a type
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_DTYPE_NAMES: Final[dict[np.dtype[Any], str]] = {dtype: name for name, dtype in DTYPES.items()}

_PICKLE: Final = "a pickle, which can run code when it is opened: only .safetensors is read"
_WEB_PAGE: Final = "a web page, not a LoRA: the address may need a login or a token"
#: What people give instead of a safetensors file, by its first bytes.
_FOREIGN: Final[tuple[tuple[bytes, str], ...]] = (
    (b"PK\x03\x04", "a zip archive, as PyTorch's .pt and .ckpt files are: only .safetensors is read, never pickle"),
    (b"\x80\x02", _PICKLE),
    (b"\x80\x03", _PICKLE),
    (b"\x80\x04", _PICKLE),
    (b"\x80\x05", _PICKLE),
    (b"GGUF", "a GGUF file: only .safetensors is read"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"),
    (b"<!DOCTYPE", _WEB_PAGE),
    (b"<!doctype", _WEB_PAGE),
    (b"<html", _WEB_PAGE),
    (b"Rar!", "a RAR archive: only .safetensors, or a .tar with one inside, is read"),
    (b"7z\xbc\xaf", "a 7z archive: only .safetensors, or a .tar with one inside, is read"),
)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: its type by safetensors' name, its shape, and its bytes' range from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A file's tensors by name, and its metadata."""

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> TensorHeader:
    """Read and check a safetensors file's header. Reads at most 100 MB, whatever the file claims.

    Raises:
        AdapterError: the file is not safetensors, is truncated, or its header claims what cannot be.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return parse_header(_header_text(file, size), size)
    except OSError as error:
        raise AdapterError(f"the file cannot be read: {error.strerror or error}") from error


def _header_text(file: BinaryIO, size: int) -> bytes:
    opening = file.read(64)
    # a safetensors file begins with its header's length, which may look like any of these; a brace follows in that case
    for magic, meaning in _FOREIGN if opening[8:9] != b"{" else ():
        if opening.startswith(magic):
            raise AdapterError(f"this is {meaning}")
    if size < 10:
        raise AdapterError(f"the file has only {size} bytes: it is empty or truncated")
    length = int.from_bytes(opening[:8], "little")
    if opening[8:9] != b"{":
        raise AdapterError("this is not a safetensors file: its header is not a JSON object")
    if length > _MAX_HEADER_BYTES:
        raise AdapterError(f"the header claims {length:,} bytes; at most {_MAX_HEADER_BYTES:,} are read")
    if 8 + length > size:
        raise AdapterError(f"the file is truncated: its header alone needs {8 + length:,} bytes, it has {size:,}")
    file.seek(8)
    return file.read(length)


def parse_header(text: bytes, file_size: int) -> TensorHeader:
    """Check a header's JSON against a file of `file_size` bytes: types, shapes, and offsets without gap or overlap.

    Raises:
        AdapterError: naming the entry that is wrong.
    """
    header = _parse_json(text)
    metadata = _parse_metadata(header.pop("__metadata__", {}))
    if len(header) > _MAX_TENSORS:
        raise AdapterError(f"the file holds {len(header):,} tensors; at most {_MAX_TENSORS:,} are read")
    data_start = 8 + len(text)
    entries = {name: _parse_entry(name, value, data_start) for name, value in header.items()}
    _check_layout(entries, data_start, file_size)
    return TensorHeader(entries, metadata)


def _parse_json(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # brackets nested by the thousand exhaust the parser's stack
        raise AdapterError("the header is not valid JSON") from error
    if not isinstance(header, dict):
        raise AdapterError("the header is not a JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON keeps the last of two entries with one name in silence; another reader may take the first
    values = dict(pairs)
    if len(values) != len(pairs):
        raise AdapterError("the header names a tensor twice")
    return values


def _parse_metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise AdapterError("the header's __metadata__ is not an object")
    return {name: text for name, text in value.items() if isinstance(text, str)}


def _parse_entry(name: str, value: object, data_start: int) -> TensorEntry:
    shown = shorten(name)
    if len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        raise AdapterError(f"tensor {shown}: the name is longer than {_MAX_NAME_LENGTH} or holds control characters")
    if not isinstance(value, dict):
        raise AdapterError(f"tensor {shown}: its header entry is not an object")
    dtype: Any = value.get("dtype")
    shape: Any = value.get("shape")
    offsets: Any = value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise AdapterError(
            f"tensor {shown}: type {shorten(str(dtype))} is not one that LoRA files use ({', '.join(DTYPES)})"
        )
    if not _is_counts(shape, at_most=_MAX_DIMENSIONS):
        raise AdapterError(f"tensor {shown}: its shape is not a list of at most {_MAX_DIMENSIONS} sizes")
    if not _is_counts(offsets, at_most=2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise AdapterError(f"tensor {shown}: its data_offsets are not a start and an end")
    entry = TensorEntry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])
    needed = math.prod(entry.shape) * DTYPES[dtype].itemsize
    if needed != entry.stop - entry.start:
        raise AdapterError(
            f"tensor {shown}: {dtype} of shape {list(shape)} needs {needed:,} bytes, "
            f"its offsets span {entry.stop - entry.start:,}"
        )
    return entry


def _is_counts(value: Any, *, at_most: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= at_most
        and all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < _MAX_COUNT for item in value)
    )


def _check_layout(entries: Mapping[str, TensorEntry], data_start: int, file_size: int) -> None:
    """Check that every byte after the header belongs to exactly one tensor, as the format demands."""
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start < position:
            raise AdapterError(f"tensor {shorten(name)}: its bytes overlap another tensor's")
        if entry.start > position:
            raise AdapterError(f"tensor {shorten(name)}: {entry.start - position:,} unclaimed bytes lie before it")
        position = entry.stop
    if position > file_size:
        raise AdapterError(f"the file is truncated: its tensors need {position:,} bytes, it has {file_size:,}")
    if position < file_size:
        raise AdapterError(f"{file_size - position:,} bytes at the file's end belong to no tensor")


def read_tensor(file: BufferedReader, entry: TensorEntry) -> Array:
    """Read one tensor's values, in its own type.

    Raises:
        AdapterError: the file ends early.
    """
    values = np.empty(entry.shape, DTYPES[entry.dtype])
    # as bytes: numpy offers no buffer of the types that ml_dtypes adds
    file.seek(entry.start)
    if file.readinto(values.reshape(-1).view(np.uint8).data) != entry.stop - entry.start:
        raise AdapterError("the file is truncated, or changed while it was read")
    return values


class TensorWriter:
    """Writes tensors one by one to a temporary file beside `path`, which takes its place only when all are there.

    The header lists every tensor, and so is known last: room for it (`header_room` bytes) is kept free at the front and
    filled at the end, which works because the format lets a header be padded with spaces. Leaving the `with` block
    without `finish` leaves nothing on disk.
    """

    def __init__(self, path: Path, header_room: int) -> None:
        self._path = path
        self._room = min(-(-header_room // _ALIGNMENT) * _ALIGNMENT, _MAX_HEADER_BYTES)
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        self._entries: dict[str, dict[str, object]] = {}
        self._position = 0

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._temporary.open("wb")
        self._file.seek(8 + self._room)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def add(self, name: str, values: Array) -> None:
        """Append one tensor, of any type in `DTYPES`."""
        data = np.ascontiguousarray(values)
        end = self._position + data.nbytes
        self._entries[name] = {
            "dtype": _DTYPE_NAMES[data.dtype],
            "shape": list(data.shape),
            "data_offsets": [self._position, end],
        }
        self._file.write(data.reshape(-1).view(np.uint8).data)
        self._position = end

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header and put the file in its place.

        Raises:
            ValueError: the header is longer than the room that was kept for it.
        """
        header = json.dumps({"__metadata__": dict(metadata)} | self._entries, separators=(",", ":")).encode()
        if len(header) > self._room:
            raise ValueError(f"the header needs {len(header)} bytes, {self._room} were kept")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
        # on disk before it gets its name: a crash must not leave a file that looks whole and is not
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._path)


def shorten(text: str, limit: int = 80) -> str:
    """The text in one printable line of at most `limit` characters, for messages."""
    line = "".join(character if character.isprintable() else "?" for character in text[: limit + 1])
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
