"""Converted LoRA files in one folder, named by the SHA-256 of the file they were made from, and never changed.

A file is needed while it is being added, while a job uses it, and for a while after a request has named it, as the job
may not have come yet. Removing a needed file only notes that it is to go; it goes with a later sweep.
"""

import asyncio
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO, Final, TypeVar

from schnell.adapters import (
    DEFAULT_MAX_BYTES,
    AdapterReport,
    ConvertedAdapter,
    ModelShape,
    check_fits,
    convert_adapter,
    inspect_adapter,
    read_adapter,
)
from schnell.adapters.apart import SMALL_BYTES, convert_apart, inspect_apart
from schnell.errors import DiskError
from schnell.file_locks import find_old_files
from schnell.loras.turns import Turns
from schnell.outbound.room import KEPT_FREE
from schnell.side_processes import SideProcesses

#: How long a file that a request has named stays for its job to come.
_GRACE_SECONDS: Final = 600
#: An upload or unpacked archive that is older than this many seconds is not one that waits for its turn.
_LEFT_SECONDS: Final = 6 * 3600
#: Names of files that are to go, as empty files: a note outlives the process.
_UNWANTED: Final = ".unwanted"
_PREVIEWS: Final = "previews"
_Answer = TypeVar("_Answer")


class AdapterFiles:
    """Converts LoRAs into `folder` for the model of `shape`. Files above `max_bytes` are refused.

    `used_by_others` says whether other processes that draw use the folder, too: this one does not know what they need.
    With `apart`, each file that a team brings has a process of its own, one of those; `turns` is whose turn it is to be
    read.
    """

    def __init__(  # noqa: PLR0913 - it is built in one place, from one part each
        self,
        folder: Path,
        shape: ModelShape,
        max_bytes: int = DEFAULT_MAX_BYTES,
        *,
        used_by_others: Callable[[], bool] = bool,
        apart: SideProcesses | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.folder = folder
        self._apart = apart
        self.max_bytes = max_bytes
        self._shape = shape
        self._used_by_others = used_by_others
        self._users: Counter[str] = Counter()
        self._named_at: dict[str, float] = {}
        self._adding = 0
        # the files that were found to fit the served model in this process: each is checked once
        self._fitting: set[str] = set()
        # one at a time: a conversion takes memory and a processor, and the engine needs both
        self._turns = turns or Turns("LoRA files", at_once=1, per_team=1)

    async def convert(
        self, source: Path, config: Mapping[str, Any] | None = None, *, team: str | None = None
    ) -> ConvertedAdapter:
        """Convert a LoRA file. `config` is PEFT's `adapter_config.json`, if it does not lie beside the file.

        `team` brings the file; None for one of the operator's own.

        Raises:
            AdapterError: it is not understood, or does not fit the served model.
            TeamBusyError: the team has too many files waiting.
            DiskError: the converted file cannot be written.
        """
        limits: dict[str, Any] = {"shape": self._shape, "max_bytes": self.max_bytes, "peft_config": config}
        async with self._turns.take(team or ""):
            if team is not None and (apart := await self._process_for(source)):
                found = await convert_apart(source, self.folder, apart, **limits)
            else:
                found = await _in_thread(convert_adapter, source, self.folder, **limits)
        self._fitting.add(found.sha256)
        return found

    async def inspect(self, source: Path, team: str) -> AdapterReport:
        """What a file that a team brings is found to be. Raises as `convert`."""
        async with self._turns.take(team):
            if apart := await self._process_for(source):
                return await inspect_apart(source, apart, max_bytes=self.max_bytes)
            return await _in_thread(inspect_adapter, source, max_bytes=self.max_bytes)

    async def _process_for(self, source: Path) -> SideProcesses | None:
        return self._apart if self._apart and (await asyncio.to_thread(source.stat)).st_size > SMALL_BYTES else None

    async def find(self, sha256: str) -> Path | None:
        """The path of the converted file with this hash, or None where it is gone.

        Raises:
            AdapterError: it does not fit the served model, which may be another than it was converted for.
        """
        path = self.path(sha256)
        # before the look at the disk: from now on nobody removes what is found there
        self.note_named(sha256)
        if not await asyncio.to_thread(path.is_file):
            return None
        if sha256 not in self._fitting:
            await asyncio.to_thread(self._check, path)
            self._fitting.add(sha256)
        return path

    def path(self, sha256: str) -> Path:
        """Where the file with this hash lies, if it is here."""
        return self.folder / f"{sha256}.safetensors"

    def preview_path(self, lora_id: str) -> Path:
        """Where the preview picture of a LoRA lies, if it has one: its owner's, not the file's."""
        return self.folder.with_name(_PREVIEWS) / f"{lora_id}.webp"

    def keep_preview(self, lora_id: str, picture: bytes) -> None:
        """Write a LoRA's preview picture, a WebP file."""
        path = self.preview_path(lora_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)

    def remove_preview(self, lora_id: str) -> None:
        """Remove a LoRA's preview picture, if it has one."""
        self.preview_path(lora_id).unlink(missing_ok=True)

    @contextmanager
    def holding(self, hashes: Iterable[str]) -> Iterator[None]:
        """Keep these files on disk while the block runs: a job uses them."""
        held = tuple(hashes)
        self._users.update(held)
        try:
            yield
        finally:
            self._users.subtract(held)
            self._users += Counter()  # drops the zeros

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Keep every file on disk while the block runs: one of them is about to get its entry, and none says which."""
        self._adding += 1
        try:
            yield
        finally:
            self._adding -= 1

    def note_named(self, sha256: str) -> None:
        """Note that a request has named this file: its job is about to come."""
        self._named_at[sha256] = time.monotonic()

    def is_needed(self, sha256: str) -> bool:
        """Whether a job uses a file, or may be about to."""
        if time.monotonic() - self._named_at.get(sha256, -math.inf) > _GRACE_SECONDS:
            self._named_at.pop(sha256, None)
        named = sha256 in self._named_at
        return named or self._users[sha256] > 0 or self._adding > 0 or self._used_by_others()

    def remove(self, sha256: str) -> bool:
        """Remove a file, or note that it is to go if it is needed. Whether it is gone.

        It waits for nothing between the question and the removal, so that no job comes in between.
        """
        note = self.folder / _UNWANTED / sha256
        if self.is_needed(sha256):
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
            return False
        self._fitting.discard(sha256)
        self.path(sha256).unlink(missing_ok=True)
        # a preview of earlier versions, which had one for each file
        self.path(sha256).with_suffix(".webp").unlink(missing_ok=True)
        self.keep(sha256)
        return True

    def list_unwanted(self) -> list[str]:
        """The files that are noted to go."""
        return [note.name for note in (self.folder / _UNWANTED).glob("*")]

    def keep(self, sha256: str) -> None:
        """Forget the note that a file is to go, if there is one."""
        (self.folder / _UNWANTED / sha256).unlink(missing_ok=True)
        with suppress(OSError):  # other notes are left, or there was none
            (self.folder / _UNWANTED).rmdir()

    def is_past_grace(self, used_at: float) -> bool:
        """Whether a file that was last used at `used_at` (Unix seconds) may be removed."""
        return time.time() - used_at > _GRACE_SECONDS

    def check_space(self, size: int) -> None:
        """Refuse to receive a file of `size` bytes where the disk has no room for it. Raises DiskError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # three times: as it comes, as it waits for its conversion, converted
        if shutil.disk_usage(self.folder).free < 3 * size + KEPT_FREE:
            raise DiskError(f"this server's disk has no room for a file of {size:,} bytes")

    async def receive(self, upload: BinaryIO) -> Path:
        """Copy an uploaded file into the folder, under a name of its own. The caller removes it. Raises DiskError."""
        return await _in_thread(self._copy, upload)

    def _copy(self, upload: BinaryIO) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        # a name that no hash has: an upload is never taken for a converted file
        path = self.folder / f".upload-{token_hex(8)}"
        try:
            with path.open("xb") as file:
                shutil.copyfileobj(upload, file)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path

    def remove_leftovers(self) -> None:
        """Remove uploads and unpacked archives that a server which was killed has left."""
        for path in find_old_files(self.folder, ".u*", _LEFT_SECONDS):
            if path.name.startswith((".upload-", ".unpack-")):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _check(self, path: Path) -> None:
        check_fits(read_adapter(path), self._shape)


async def _in_thread(work: Callable[..., _Answer], *arguments: Any, **options: Any) -> _Answer:
    """`asyncio.to_thread`. Raises DiskError where the disk is full or away."""
    try:
        return await asyncio.to_thread(work, *arguments, **options)
    except OSError as error:
        raise DiskError(f"the LoRA cannot be kept: {error.strerror or type(error).__name__}") from error
