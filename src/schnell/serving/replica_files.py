"""LoRA files on a replica's own disk: fetched once from where the gateways put them, checked, kept while they fit."""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import structlog

from schnell.errors import AdapterError
from schnell.spec import Job

log = structlog.get_logger(__name__)
#: Copies a shared file, by its name, to a path; False where there is none.
FetchFile = Callable[[str, Path], Awaitable[bool]]


class FileMissingError(Exception):
    """The gateways' store does not have a file of this name (`args[0]`): a gateway has to put it there again."""


class ReplicaFiles:
    """The folder of one machine's LoRA files; several replicas of a machine may share it.

    A file is named by the SHA-256 of its bytes, and only a file whose bytes have that hash gets the name.
    """

    def __init__(self, folder: Path, fetch: FetchFile, most_bytes: int) -> None:
        self._folder = folder
        self._fetch = fetch
        self._most_bytes = most_bytes
        self._fetching: dict[str, asyncio.Lock] = {}
        self._held: dict[str, int] = {}

    async def place(self, job: Job, contents: Mapping[str, str]) -> Job:
        """The job with its LoRAs as files of this machine; `contents` gives the hash of each file's bytes.

        Raises:
            FileMissingError: the store does not have it.
            AdapterError: it gave other bytes.
        """
        paths = [await self._find(contents[use.sha256]) for use in job.adapters]
        placed = zip(job.adapters, paths, strict=True)
        return replace(job, adapters=tuple(replace(use, path=path) for use, path in placed))

    @contextmanager
    def holding(self, names: Iterable[str]) -> Iterator[None]:
        """Keep these files (by the hash of their bytes) while the block runs."""
        held = tuple(names)
        for name in held:
            self._held[name] = self._held.get(name, 0) + 1
        try:
            yield
        finally:
            for name in held:
                self._held[name] -= 1
                if not self._held[name]:
                    del self._held[name]

    async def _find(self, content: str) -> Path:
        path = self._folder / f"{content}.safetensors"
        async with self._fetching.setdefault(content, asyncio.Lock()):
            if await asyncio.to_thread(_touch, path):
                return path
            await asyncio.to_thread(self._make_room)
            await self._bring(content, path)
        self._fetching.pop(content, None)
        return path

    async def _bring(self, content: str, path: Path) -> None:
        # two replicas of a machine may fetch at once: each writes a file of its own, and the last one gives it its name
        draft = path.with_name(f"{content}.{os.getpid()}.draft")
        await asyncio.to_thread(lambda: self._folder.mkdir(parents=True, exist_ok=True))
        try:
            if not await self._fetch(f"{content}.safetensors", draft):
                raise FileMissingError(content)
            if await asyncio.to_thread(_hash_file, draft) != content:
                raise AdapterError("the file that the servers share is not this LoRA; add it again")
            await asyncio.to_thread(draft.replace, path)
        finally:
            await asyncio.to_thread(lambda: draft.unlink(missing_ok=True))

    def _make_room(self) -> None:
        files = sorted((each.stat().st_mtime, each.stat().st_size, each) for each in self._folder.glob("*.safetensors"))
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self._most_bytes:
                return
            if path.stem not in self._held:
                path.unlink(missing_ok=True)
                total -= size


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _touch(path: Path) -> bool:
    """Note that a file is used, for the order in which files go; whether it is there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
