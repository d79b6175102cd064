"""What a checkpoint file holds, from its header alone: safetensors or GGUF, without torch and without reading a weight.

GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Its header is read here and not by the `gguf` package,
which believes a file's counts and may fill the memory for one that lies; the blocks' arithmetic is that package's.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Final, Literal

from schnell.errors import ModelChoiceError, ModelFolderError

#: Of a name or a text in a GGUF header, in bytes; tokenizers there hold longer lists, never longer texts.
_LONGEST_TEXT: Final = 1 << 20
#: FLUX.1 with all its parts has 2,000 tensors.
_MOST_TENSORS: Final = 100_000
_MOST_DIMENSIONS: Final = 4
_PLAIN_BYTES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _LIST = 8, 9
#: GGUF's tensor types that are read: name, numbers in a block, bytes of a block.
GGUF_TYPES: Final[Mapping[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}
#: safetensors' types that are read.
SAFETENSORS_TYPES: Final = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
#: What people give instead, by its first bytes.
_FOREIGN: Final = (
    (b"PK\x03\x04", "a PyTorch archive (.pt, .ckpt) or another zip, which can run code when it is opened"),
    (b"\x80", "a pickle, which can run code when it is opened"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"),
    (b"<", "a web page, not a model: the address may need a login or a token"),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: its type by its format's name, its shape as torch has it, and where its bytes lie in the file.

    `start` and `stop` are 0 in a safetensors file, whose own library finds tensors by name.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True)
class CheckpointHeader:
    """A file's tensors by name."""

    path: Path
    form: Literal["safetensors", "gguf"]
    tensors: Mapping[str, TensorInfo]


def read_checkpoint_header(path: Path) -> CheckpointHeader:
    """Read and check the header of a `.safetensors` or `.gguf` file, whatever it is called.

    Raises:
        ModelFolderError: the file cannot be read, is another format, is truncated, or claims what cannot be.
    """
    try:
        with path.open("rb") as file:
            opening = file.read(32)
            if opening.startswith(b"GGUF"):
                return CheckpointHeader(path, "gguf", _GgufHeader(file, path).tensors())
    except FileNotFoundError as error:
        raise ModelChoiceError(f"there is no file {path}") from error
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read: {error.strerror or error}") from error
    if opening[8:9] == b"{":
        return CheckpointHeader(path, "safetensors", _read_safetensors(path))
    for magic, meaning in _FOREIGN:
        if opening.startswith(magic):
            raise ModelFolderError(f"{path.name} is {meaning}; .safetensors and .gguf are read")
    raise ModelFolderError(f"{path.name} is neither a safetensors nor a GGUF file")


def _read_safetensors(path: Path) -> dict[str, TensorInfo]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {name: TensorInfo(each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFolderError(f"{path.name} is damaged or truncated: {error}") from error


class _GgufHeader:
    """A GGUF file's header, read from the front; no count in it is believed beyond what the file can hold."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._size = os.fstat(file.fileno()).st_size

    def tensors(self) -> dict[str, TensorInfo]:
        """The tensors by name."""
        self._file.seek(4)
        version = self._number("<I")
        if version not in {2, 3}:
            raise self._refusal(f"its version is {version}; 2 and 3 are read")
        tensor_count, field_count = self._number("<Q"), self._number("<Q")
        if tensor_count > _MOST_TENSORS or field_count > _MOST_TENSORS:
            raise self._refusal(f"it claims {tensor_count:,} tensors and {field_count:,} fields")
        alignment = self._read_fields(field_count)
        entries = [self._entry() for _ in range(tensor_count)]
        # the data begin at the next multiple of the alignment, and offsets count from there
        base = -(-self._file.tell() // alignment) * alignment
        found: dict[str, TensorInfo] = {}
        for name, (kind, block, block_bytes), shape, offset in entries:
            if name in found:
                raise self._refusal(f"it has two tensors {name!r}")
            if not shape or shape[-1] % block:
                raise self._refusal(f"{name} of shape {list(shape)} is not made of blocks of {block}")
            start = base + offset
            stop = start + prod(shape) // block * block_bytes
            if stop > self._size:
                raise self._refusal(f"it is truncated: {name} needs bytes up to {stop:,}, it has {self._size:,}")
            found[name] = TensorInfo(kind, shape, start, stop)
        return found

    def _read_fields(self, count: int) -> int:
        """Pass over the metadata; its alignment of tensors in bytes."""
        alignment = 32
        for _ in range(count):
            name, kind = self._text(), self._number("<I")
            if name == "general.alignment" and kind == 4:
                alignment = self._number("<I")
            else:
                self._skip(kind)
        if alignment < 1 or alignment & (alignment - 1):
            raise self._refusal(f"its alignment is {alignment}, no power of two")
        return alignment

    def _skip(self, kind: int, count: int = 1) -> None:
        """Pass over so many values of a kind."""
        if kind in _PLAIN_BYTES:
            self._advance(count * _PLAIN_BYTES[kind])
        elif kind == _TEXT:
            for _ in range(count):
                self._advance(self._number("<Q"))
        elif kind == _LIST and count == 1:
            inner, length = self._number("<I"), self._number("<Q")
            if inner == _LIST:
                raise self._refusal("it holds lists of lists")
            self._skip(inner, length)
        else:
            raise self._refusal(f"it holds a value of the unknown kind {kind}")

    def _entry(self) -> tuple[str, tuple[str, int, int], tuple[int, ...], int]:
        name, dimensions = self._text(), self._number("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise self._refusal(f"{name} has {dimensions} dimensions")
        # GGUF names the fastest dimension first
        shape = tuple(reversed([self._number("<Q") for _ in range(dimensions)]))
        kind, offset = self._number("<I"), self._number("<Q")
        if kind not in GGUF_TYPES:
            known = ", ".join(each for each, _, _ in GGUF_TYPES.values())
            raise self._refusal(f"{name} has GGUF's type {kind}, which is not read; these are: {known}")
        return name, GGUF_TYPES[kind], shape, offset

    def _text(self) -> str:
        length = self._number("<Q")
        if length > _LONGEST_TEXT:
            raise self._refusal(f"it claims a name of {length:,} bytes")
        return self._bytes(length).decode("utf-8", "replace")

    def _number(self, form: str) -> int:
        value: int = struct.unpack(form, self._bytes(struct.calcsize(form)))[0]
        return value

    def _bytes(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise self._refusal("it is truncated: its header does not end")
        return data

    def _advance(self, count: int) -> None:
        if self._file.tell() + count > self._size:
            raise self._refusal("it is truncated: its header does not end")
        self._file.seek(count, os.SEEK_CUR)

    def _refusal(self, why: str) -> ModelFolderError:
        return ModelFolderError(f"{self._path.name} is no GGUF file that can be read: {why}")
