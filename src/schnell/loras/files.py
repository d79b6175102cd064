"""Converted LoRA files on disk, by the hash of their source: one folder, written atomically, never changed."""

import asyncio
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO, Final

from schnell.adapters import DEFAULT_MAX_BYTES, ConvertedAdapter, ModelShape, check_fits, convert_adapter, read_adapter

#: A file that a queued job may be about to open is not removed.
_GRACE_SECONDS: Final = 600


class AdapterFiles:
    """Converts LoRAs into `folder` for the model of `shape`."""

    def __init__(self, folder: Path, shape: ModelShape, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._shape = shape
        self._fitting: set[str] = set()
        self._turn = asyncio.Semaphore(2)

    async def convert(self, source: Path, config: Mapping[str, Any] | None = None) -> ConvertedAdapter:
        """Convert a LoRA file, in a thread; `config` is PEFT's configuration where it does not lie beside the file.

        Raises:
            AdapterError: it is not understood, or does not fit the served model.
        """
        async with self._turn:
            found = await asyncio.to_thread(
                convert_adapter, source, self.folder, shape=self._shape, max_bytes=self.max_bytes, peft_config=config
            )
        self._fitting.add(found.sha256)
        return found

    async def find(self, sha256: str) -> Path | None:
        """The converted file with this hash, or None where it is gone.

        Raises:
            AdapterError: it does not fit the served model.
        """
        path = self.path(sha256)
        if not await asyncio.to_thread(path.is_file):
            return None
        if sha256 not in self._fitting:
            await asyncio.to_thread(self._check, path)
            self._fitting.add(sha256)
        return path

    def path(self, sha256: str) -> Path:
        """Where the file with this hash lies, if it does."""
        return self.folder / f"{sha256}.safetensors"

    def preview_path(self, sha256: str) -> Path:
        """Where the preview picture of the file with this hash lies, if it has one."""
        return self.folder / f"{sha256}.webp"

    def remove(self, sha256: str) -> None:
        """Remove a file and its preview, if they are here."""
        self._fitting.discard(sha256)
        self.path(sha256).unlink(missing_ok=True)
        self.preview_path(sha256).unlink(missing_ok=True)

    def is_settled(self, used_at: float) -> bool:
        """Whether a file last used at this time (in seconds) may be removed."""
        return time.time() - used_at > _GRACE_SECONDS

    async def receive(self, upload: BinaryIO) -> Path:
        """Copy an uploaded file to a path of its own; the caller removes it."""
        return await asyncio.to_thread(self._copy, upload)

    def _copy(self, upload: BinaryIO) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f".upload-{token_hex(8)}"
        with path.open("xb") as file:
            shutil.copyfileobj(upload, file)
        return path

    def _check(self, path: Path) -> None:
        check_fits(read_adapter(path), self._shape)
