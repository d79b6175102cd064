"""Converted LoRA files in one folder, never changed, and named by a hash (SHA-256) of what they were made from."""

import asyncio
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO, Final

from schnell.adapters import DEFAULT_MAX_BYTES, ConvertedAdapter, ModelShape, check_fits, convert_adapter, read_adapter

#: A file that was used so lately is not removed: a queued job may be about to open it.
_GRACE_SECONDS: Final = 600


class AdapterFiles:
    """Converts LoRAs for the model of `shape` into `folder`. Files above `max_bytes` are refused."""

    def __init__(self, folder: Path, shape: ModelShape, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._shape = shape
        # the files that were found to fit the served model in this process: each is checked once
        self._fitting: set[str] = set()
        # each keeps a processor busy, which the engine needs
        self._conversions = asyncio.Semaphore(2)

    async def convert(self, source: Path, config: Mapping[str, Any] | None = None) -> ConvertedAdapter:
        """Convert a LoRA file. `config` is PEFT's `adapter_config.json`, if it does not lie beside the file.

        Raises:
            AdapterError: it is not understood, or does not fit the served model.
        """
        async with self._conversions:
            found = await asyncio.to_thread(
                convert_adapter, source, self.folder, shape=self._shape, max_bytes=self.max_bytes, peft_config=config
            )
        self._fitting.add(found.sha256)
        return found

    async def find(self, sha256: str) -> Path | None:
        """The path of the converted file with this hash, or None where it is gone.

        Raises:
            AdapterError: it does not fit the served model, which may be another than it was converted for.
        """
        path = self.path(sha256)
        if not await asyncio.to_thread(path.is_file):
            return None
        if sha256 not in self._fitting:
            await asyncio.to_thread(self._check, path)
            self._fitting.add(sha256)
        return path

    def path(self, sha256: str) -> Path:
        """Where the file with this hash lies, if it is here."""
        return self.folder / f"{sha256}.safetensors"

    def preview_path(self, sha256: str) -> Path:
        """Where the preview picture of the file with this hash lies, if it has one."""
        return self.folder / f"{sha256}.webp"

    def remove(self, sha256: str) -> None:
        """Remove a file and its preview, if they are here."""
        self._fitting.discard(sha256)
        self.path(sha256).unlink(missing_ok=True)
        self.preview_path(sha256).unlink(missing_ok=True)

    def is_past_grace(self, used_at: float) -> bool:
        """Whether a file that was last used at `used_at` (Unix seconds) may be removed."""
        return time.time() - used_at > _GRACE_SECONDS

    async def receive(self, upload: BinaryIO) -> Path:
        """Copy an uploaded file into the folder, under a name of its own. The caller removes it."""
        return await asyncio.to_thread(self._copy, upload)

    def _copy(self, upload: BinaryIO) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        # a name that no hash has: an upload is never taken for a converted file
        path = self.folder / f".upload-{token_hex(8)}"
        with path.open("xb") as file:
            shutil.copyfileobj(upload, file)
        return path

    def _check(self, path: Path) -> None:
        check_fits(read_adapter(path), self._shape)
