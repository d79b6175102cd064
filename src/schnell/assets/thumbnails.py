"""Thumbnails: a small WebP beside each stored picture, made soon after it was stored, or when it is first looked at."""

import asyncio
import io
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from PIL import Image

from schnell.assets.store import AssetStore, thumbnail_key
from schnell.clock import wait_for_quiet
from schnell.errors import NotFoundError, SchnellError

_log = logging.getLogger(__name__)
#: The longer side in pixels: a tile of the gallery on a screen with two pixels to a CSS pixel.
SIDE: Final = 448
#: A page of the gallery shows 24 of them, and shall weigh no more than 600 kB.
MOST_BYTES: Final = 20_000
_QUALITIES: Final = (78, 64, 48, 32, 16)
_MOST_WAITING: Final = 500
#: Seconds between two looks at whether work is under way, and how many of them have to find none: whoever asks for one
#: picture after the other would else meet, in each, the thumbnail of the one before.
_PATIENCE: Final = 0.5
_QUIET_LOOKS: Final = 3
_AT_ONCE: Final = 2


class Thumbnails:
    """Makes and keeps thumbnails in the store of the pictures. `is_busy` says whether paying work is under way."""

    def __init__(self, store: AssetStore, is_busy: Callable[[], bool] = lambda: False) -> None:
        self._store = store
        self._is_busy = is_busy
        self._waiting: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None
        # decoding takes a core: the engine needs them more
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def ask_for(self, keys: Iterable[str]) -> None:
        """Make these pictures' thumbnails once nothing else is to be done. What is too much is made when looked at."""
        for key in keys:
            if len(self._waiting) < _MOST_WAITING:
                self._waiting[key] = None
        if self._waiting and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._make_all())

    async def get(self, key: str) -> bytes:
        """A picture's thumbnail, which is made if there is none yet.

        Raises:
            NotFoundError: the picture is not stored any more.
            AssetError: the store cannot be read.
        """
        try:
            return await self._store.get(thumbnail_key(key))
        except NotFoundError:
            return await self._make(key)

    async def close(self) -> None:
        """Make no more. What waits is made when it is looked at."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _make_all(self) -> None:
        await self._wait_for_quiet()
        while self._waiting:
            if self._is_busy():
                await self._wait_for_quiet()
            key = next(iter(self._waiting))
            del self._waiting[key]
            try:
                await self.get(key)
            except SchnellError as error:
                _log.info("no thumbnail of %s: %s", key, error.message)
            except Exception:  # noqa: BLE001 - one picture that cannot be read must not keep the others waiting
                _log.exception("no thumbnail of %s", key)

    async def _wait_for_quiet(self) -> None:
        await wait_for_quiet(self._is_busy, _PATIENCE, _QUIET_LOOKS)

    async def _make(self, key: str) -> bytes:
        async with self._turns:
            picture = await self._store.get(key)
            data = await asyncio.to_thread(make_thumbnail, picture)
            with suppress(SchnellError):
                await self._store.put(thumbnail_key(key), data, "image/webp")
                # a picture that was deleted meanwhile has taken its thumbnail along before this one was written
                await self._keep_with_picture(key)
            return data

    async def _keep_with_picture(self, key: str) -> None:
        try:
            await self._store.get(key)
        except NotFoundError:
            await self._store.delete([key])
            raise


def make_thumbnail(picture: bytes) -> bytes:
    """A WebP of at most 448 pixels a side and 20 kB, in a quality that fits."""
    with Image.open(io.BytesIO(picture)) as opened:
        opened.draft("RGB", (SIDE, SIDE))
        image = opened.convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    for quality in _QUALITIES:
        file = io.BytesIO()
        image.save(file, "WEBP", quality=quality, method=4)
        if file.tell() <= MOST_BYTES:
            break
        # noise hardly compresses: the last resort is fewer pixels
        if quality == _QUALITIES[-2]:
            image = image.resize((image.width // 2 or 1, image.height // 2 or 1))
    return file.getvalue()
