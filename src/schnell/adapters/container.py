"""Writing canonical safetensors files: streamed, atomic, and the same bytes for the same source."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from schnell.adapters.tensors import (DTYPE_NAMES, MAX_HEADER_BYTES, Array)

_ALIGNMENT: Final = 8


class TensorWriter:
    """Writes tensors one by one to a temporary file beside `path`, which takes its place only when all are there.

    Room for the header is kept free at the front (`header_room` bytes) and filled at the end; the format allows a
    header to be padded with spaces. Leaving the `with` block without `finish` leaves nothing on disk.
    """

    def __init__(self, path: Path, header_room: int) -> None:
        self._path = path
        self._room = min(-(-header_room // _ALIGNMENT) * _ALIGNMENT, MAX_HEADER_BYTES)
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

    @property
    def names(self) -> frozenset[str]:
        """The tensors written so far."""
        return frozenset(self._entries)

    def add(self, name: str, values: Array) -> None:
        """Append one tensor."""
        data = np.ascontiguousarray(values)
        end = self._position + data.nbytes
        self._entries[name] = {
            "dtype": DTYPE_NAMES[data.dtype],
            "shape": list(data.shape),
            "data_offsets": [self._position, end],
        }
        self._file.write(data.reshape(-1).view(np.uint8).data)
        self._position = end

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header and put the file in its place."""
        header = json.dumps({"__metadata__": dict(metadata)} | self._entries, separators=(",", ":")).encode()
        if len(header) > self._room:
            raise ValueError(f"the header needs {len(header)} bytes, {self._room} were kept")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._path)
