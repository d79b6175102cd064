"""Where the servers of one installation find the converted files of each other's LoRAs: the store of pictures."""

import asyncio
import logging

from schnell.adapters import read_info
from schnell.assets.store import AssetStore
from schnell.errors import AdapterError, AssetError
from schnell.loras.files import AdapterFiles

_log = logging.getLogger(__name__)


class LoraShelf:
    """Puts the files of the library into `store` and takes them out; without a store, it does nothing.

    A file is named by the hash of its source, so two servers that put the same name put the same content.
    """

    def __init__(self, files: AdapterFiles, store: AssetStore | None) -> None:
        self._files = files
        self._store = store
        self._fetching: dict[str, asyncio.Lock] = {}

    async def put(self, sha256: str) -> None:
        """Let the other servers find this file. Raises AssetError: a LoRA that they could not draw is not added."""
        if self._store is not None:
            await self._store.put_file(_name(sha256), self._files.path(sha256))

    async def fetch(self, sha256: str) -> bool:
        """Take a file that another server has put there. Whether it is here now. Raises AssetError, AdapterError."""
        if self._store is None:
            return False
        # one after the other: several requests may name a LoRA that was just added elsewhere
        lock = self._fetching.setdefault(sha256, asyncio.Lock())
        try:
            async with lock:
                path = self._files.path(sha256)
                if await asyncio.to_thread(path.is_file):
                    return True
                if not await self._store.fetch_file(_name(sha256), path):
                    return False
                found = await asyncio.to_thread(read_info, path)
        finally:
            self._fetching.pop(sha256, None)
        if found.source_sha256 != sha256:
            await asyncio.to_thread(path.unlink)
            raise AdapterError("the file that the servers share is not this LoRA; add it again")
        return True

    async def remove(self, sha256: str) -> None:
        """Remove a file that no entry leads to. One that cannot be removed stays: it takes room, and does no harm."""
        if self._store is None:
            return
        try:
            await self._store.remove_file(_name(sha256))
        except AssetError as error:
            _log.warning("the shared file of a removed LoRA stays: %s", error.message)


def _name(sha256: str) -> str:
    return f"{sha256}.safetensors"
