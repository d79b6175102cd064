"""Where finished pictures are kept: a Protocol, because there are two real stores."""

import re
import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import Final, Protocol

from schnell.errors import NotFoundError

#: What a stored picture is called: `<environment>/images/YYYY_MM_DD_HH_MM_SS_mmm_NNNNNN.<ext>`.
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}/images/[0-9]{4}(_[0-9]{2}){5}_[0-9]{3}_[0-9]{6}\.(webp|jpe?g|png)")
_EXTENSIONS: Final = {"image/webp": "webp", "image/jpeg": "jpg", "image/png": "png"}
_MEDIA_TYPES: Final = {"webp": "image/webp", "jpg": "image/jpeg", "jpeg": "image/jpeg", "png": "image/png"}

#: A picture under a key never changes, so whoever has it may keep it.
CACHE_CONTROL: Final = "private, max-age=604800, immutable"


class AssetStore(Protocol):
    """Keeps pictures under their keys. A picture is there whole or not at all."""

    async def put(self, key: str, data: bytes, media_type: str) -> None:
        """Keep `data` under `key`. Raises AssetError when the store cannot be written."""
        ...

    async def get(self, key: str) -> bytes:
        """The bytes under `key`. Raises NotFoundError, AssetError."""
        ...

    async def delete(self, keys: Iterable[str]) -> None:
        """Forget these keys; those that are not there are no error. Raises AssetError."""
        ...

    async def list_keys(self) -> list[str]:
        """Every picture's key. Raises AssetError."""
        ...

    def url(self, key: str, seconds: int) -> str:
        """A link that opens the picture for `seconds`, with no other proof of who asks."""
        ...

    async def close(self) -> None:
        """Let go of connections and unfinished writes."""
        ...


class KeyMint:
    """Makes keys that never repeat: the time, and a count that starts anywhere."""

    def __init__(self, environment: str) -> None:
        self._environment = environment
        self._count = secrets.randbelow(1_000_000)

    def make(self, moment: datetime, extension: str) -> str:
        """The key of a picture asked for at `moment` (UTC)."""
        self._count = (self._count + 1) % 1_000_000
        stamp = f"{moment:%Y_%m_%d_%H_%M_%S}_{moment.microsecond // 1000:03d}"
        return f"{self._environment}/images/{stamp}_{self._count:06d}.{extension}"


def check_key(key: str) -> str:
    """`key`, when it has a picture's form and so cannot lead out of the store.

    Raises:
        NotFoundError: it has not.
    """
    if not _KEY.fullmatch(key):
        raise NotFoundError("no picture has this name")
    return key


def is_key(text: str) -> bool:
    """Whether `text` has the form of a picture's key."""
    return _KEY.fullmatch(text) is not None


def file_name(key: str) -> str:
    """The last part of a key: what a download is called."""
    return key.rpartition("/")[2]


def media_type_of(key: str) -> str:
    """The media type that a key's ending stands for."""
    return _MEDIA_TYPES[key.rpartition(".")[2]]


def extension_of(media_type: str) -> str:
    """The ending for a media type."""
    return _EXTENSIONS[media_type]
