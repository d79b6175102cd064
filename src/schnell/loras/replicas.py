"""LoRA files for a cluster's replicas: put into the store of pictures, under the hash of their bytes."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from schnell.assets.store import AssetStore
from schnell.spec import AdapterUse


class ReplicaShelf:
    """Puts each file there once in the life of this server; what somebody removed there is put again on demand."""

    def __init__(self, store: AssetStore) -> None:
        self._store = store
        self._hashes: dict[tuple[Path, int, int], str] = {}
        self._putting: dict[str, asyncio.Lock] = {}
        self._there: set[str] = set()

    async def __call__(self, adapters: Sequence[AdapterUse], *, again: bool = False) -> Mapping[str, str]:
        """The hash of each file's bytes, by the LoRA's `sha256`, once the files are in the store.

        Raises:
            AssetError: the store does not take them.
        """
        contents = {use.sha256: await self._hash(use.path) for use in adapters}
        for use in adapters:
            await self._put(contents[use.sha256], use.path, again=again)
        return contents

    async def _hash(self, path: Path) -> str:
        state = await asyncio.to_thread(path.stat)
        known = (path, state.st_size, state.st_mtime_ns)
        if known not in self._hashes:
            self._hashes[known] = await asyncio.to_thread(_hash_file, path)
        return self._hashes[known]

    async def _put(self, content: str, path: Path, *, again: bool) -> None:
        # one after the other: a burst of requests names one new LoRA
        async with self._putting.setdefault(content, asyncio.Lock()):
            if again or content not in self._there:
                await self._store.put_file(f"{content}.safetensors", path)
                self._there.add(content)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
