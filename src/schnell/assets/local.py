"""Pictures as files in a folder of this machine, opened by signed links to this server."""

import asyncio
import os
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote
from uuid import uuid4

from schnell.assets.links import FILES_PATH, LinkSigner
from schnell.assets.store import check_stored, list_pictures, shared_name, with_thumbnails
from schnell.errors import AssetError, NotFoundError

_DRAFTS: Final = ".drafts"


class LocalAssets:
    """An `AssetStore` of files under `root`. Its links lead to `/files/` under `public_url`, signed by `signer`.

    `owner` is the id of the server that writes here; its drafts (files being written) lie in a folder of that name.
    """

    def __init__(self, root: Path, signer: LinkSigner, public_url: str, *, owner: str | None = None) -> None:
        self.root = root
        self.signer = signer
        self._public_url = public_url.rstrip("/")
        # beside the pictures, because a file can be renamed within one file system only; a folder of its own for each
        # process, because several may share `root`
        self._drafts = root / _DRAFTS / (owner or uuid4().hex)

    async def put(self, key: str, data: bytes, media_type: str) -> None:  # noqa: ARG002 - the ending says it
        """Write the file elsewhere, then rename it: a reader sees the whole file or none. Raises AssetError."""
        await asyncio.to_thread(self._write, f"{self.root}/{check_stored(key)}", data)

    async def get(self, key: str) -> bytes:
        """The file's bytes. Raises NotFoundError, AssetError."""
        try:
            return await asyncio.to_thread(self.path(key).read_bytes)
        except FileNotFoundError as cause:
            raise NotFoundError("this picture is no longer stored") from cause
        except OSError as cause:
            raise AssetError(f"the picture cannot be read: {cause.strerror}") from cause

    async def delete(self, keys: Iterable[str]) -> None:
        """Remove the files. Raises AssetError."""
        await asyncio.to_thread(self._delete, [self.path(key) for key in with_thumbnails(keys)])

    async def list_keys(self) -> list[str]:
        """The key of every picture below the root, or that has left a thumbnail there."""
        return await asyncio.to_thread(self._list)

    def url(self, key: str, seconds: int) -> str:
        """A signed link under the public URL that opens the picture for `seconds`."""
        path = FILES_PATH + quote(key)
        return self._public_url + self.signer.sign(path, int(time.time()) + seconds)

    async def close(self) -> None:
        """Remove this store's unfinished writes."""
        await asyncio.to_thread(_remove_folder, self._drafts)

    async def put_file(self, name: str, path: Path) -> None:
        """Copy the file into the store. Raises AssetError."""
        await asyncio.to_thread(_copy, path, self.root / shared_name(name))

    async def fetch_file(self, name: str, path: Path) -> bool:
        """Copy the file out of the store; False where it is not there. Raises AssetError."""
        source = self.root / shared_name(name)
        if not await asyncio.to_thread(source.is_file):
            return False
        await asyncio.to_thread(_copy, source, path)
        return True

    async def remove_file(self, name: str) -> None:
        """Remove the file. Raises AssetError."""
        await asyncio.to_thread(self._delete, [self.root / shared_name(name)])

    def sweep_drafts(self, living: Collection[str]) -> None:
        """Remove what was left half written by servers that are not among the `living` (their ids)."""
        for folder in (self.root / _DRAFTS).glob("*"):
            if folder.name not in living:
                _remove_folder(folder)

    def path(self, key: str) -> Path:
        """Where the picture of this key lies. Raises NotFoundError for a text that is no picture's key."""
        return self.root / check_stored(key)

    def _write(self, path: str, data: bytes) -> None:
        draft = f"{self._drafts}/{uuid4().hex}"
        try:
            try:
                _write_beside(draft, path, data)
            except FileNotFoundError:
                # made only now, as a call for each picture would cost: for the first of an environment there are no
                # folders, and another server that starts on this folder sweeps the drafts away
                self._drafts.mkdir(parents=True, exist_ok=True)
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                _write_beside(draft, path, data)
        except OSError as cause:
            Path(draft).unlink(missing_ok=True)
            raise AssetError(f"the picture cannot be stored: {cause.strerror}") from cause

    def _delete(self, paths: list[Path]) -> None:
        try:
            for path in paths:
                path.unlink(missing_ok=True)
        except OSError as cause:
            raise AssetError(f"the picture cannot be removed: {cause.strerror}") from cause

    def _list(self) -> list[str]:
        found = (Path(folder, name) for folder, _, names in os.walk(self.root) for name in names)
        return list_pictures(file.relative_to(self.root).as_posix() for file in found)


def _write_beside(draft: str, path: str, data: bytes) -> None:
    # without fsync, for which every request would wait: a picture outlives a killed process; one that was stored just
    # before a power cut may be empty
    with open(draft, "wb", buffering=0) as file:  # noqa: PTH123 - every request waits for this one
        # unbuffered, `write` may take fewer bytes than it is given
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
    os.replace(draft, path)  # noqa: PTH105 - as above


def _copy(source: Path, target: Path) -> None:
    draft = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, draft)
        draft.replace(target)
    except OSError as cause:
        draft.unlink(missing_ok=True)
        raise AssetError(f"the file cannot be copied: {cause.strerror}") from cause


def _remove_folder(folder: Path) -> None:
    # others may sweep it at the same moment, and a server taken for dead may write once more: `_write` tries again
    with suppress(OSError):
        for file in folder.iterdir():
            file.unlink(missing_ok=True)
        folder.rmdir()
