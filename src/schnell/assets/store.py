"""Where finished pictures are stored: what both stores (`local`, `s3`) offer, and the keys that they store under."""

import re
import secrets
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from schnell.errors import NotFoundError

#: The last part of a picture's key.
PICTURE_FILE: Final = r"[0-9]{4}(_[0-9]{2}){5}_[0-9]{3}_[0-9]{6}\.(webp|jpe?g|png)"
#: A picture's key: `<environment>/images/YYYY_MM_DD_HH_MM_SS_mmm_NNNNNN.<ext>`. Without dots and slashes elsewhere, it
#: cannot lead out of a folder.
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}/images/" + PICTURE_FILE)
#: The same for its thumbnail: `<environment>/thumbnails/<name of the picture's file>.webp`.
_THUMBNAIL: Final = re.compile(_KEY.pattern.replace("/images/", "/thumbnails/") + r"\.webp")
#: Where files that are no pictures lie: no picture's key begins like this.
SHARED_FILES: Final = "shared-files"
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,100}\.[a-z]{1,20}")
_EXTENSIONS: Final = {"image/webp": "webp", "image/jpeg": "jpg", "image/png": "png"}
_MEDIA_TYPES: Final = {"webp": "image/webp", "jpg": "image/jpeg", "jpeg": "image/jpeg", "png": "image/png"}

#: A picture under a key never changes, so whoever has it may keep it: for a week, as long as a link opens by default.
CACHE_CONTROL: Final = "private, max-age=604800, immutable"


class AssetStore(Protocol):
    """Stores pictures under their keys. A picture is there whole or not at all."""

    async def put(self, key: str, data: bytes, media_type: str) -> None:
        """Store `data` under `key`. Raises AssetError when the store cannot be written."""
        ...

    async def get(self, key: str) -> bytes:
        """The bytes under `key`. Raises NotFoundError where there are none, AssetError where they cannot be read."""
        ...

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete these pictures and their thumbnails; those that are not there are no error. Raises AssetError."""
        ...

    async def list_keys(self) -> list[str]:
        """The key of every picture that is stored, or that has left a thumbnail behind, sorted. Raises AssetError."""
        ...

    def url(self, key: str, seconds: int) -> str:
        """A link that opens the picture for `seconds`, for whoever has it."""
        ...

    async def put_file(self, name: str, path: Path) -> None:
        """Keep a file that is no picture, for the other servers of this installation. Raises AssetError."""
        ...

    async def fetch_file(self, name: str, path: Path) -> bool:
        """Copy such a file to `path`, whole; False where there is none of this name. Raises AssetError."""
        ...

    async def remove_file(self, name: str) -> None:
        """Remove such a file; one that is not there is no error. Raises AssetError."""
        ...

    async def close(self) -> None:
        """Close connections, and remove what this store has not finished writing."""
        ...


class KeyMint:
    """Makes the keys of pictures: the time to the millisecond, and a count of six digits.

    One mint makes no key twice within a million. Its count starts at random: two servers that store in one place choose
    the same key for pictures of the same millisecond once in a million.
    """

    def __init__(self, environment: str) -> None:
        self._environment = environment
        self._count = secrets.randbelow(1_000_000)

    def make(self, moment: datetime, extension: str) -> str:
        """The key of a picture asked for at `moment` (UTC)."""
        self._count = (self._count + 1) % 1_000_000
        stamp = f"{moment:%Y_%m_%d_%H_%M_%S}_{moment.microsecond // 1000:03d}"
        return f"{self._environment}/images/{stamp}_{self._count:06d}.{extension}"


def check_key(key: str) -> str:
    """`key` itself, if it has the form of a picture's key and so cannot lead out of the store.

    Raises:
        NotFoundError: it has another form.
    """
    if not _KEY.fullmatch(key):
        raise NotFoundError("no picture has this name")
    return key


def thumbnail_key(key: str) -> str:
    """Where the thumbnail of a picture lies. It goes when the picture is deleted. Raises NotFoundError for no key."""
    environment, _, name = check_key(key).split("/")
    return f"{environment}/thumbnails/{name}.webp"


def check_stored(key: str) -> str:
    """`key` itself, if it is that of a picture or of a thumbnail. Raises NotFoundError."""
    return key if is_thumbnail(key) else check_key(key)


def with_thumbnails(keys: Iterable[str]) -> Iterator[str]:
    """These pictures' keys, each followed by that of its thumbnail."""
    for key in keys:
        yield key
        yield thumbnail_key(key)


def list_pictures(names: Iterable[str]) -> list[str]:
    """The keys of the pictures and of the thumbnails' pictures among the names in a store, sorted, each once."""
    folded = (
        name.replace("/thumbnails/", "/images/").removesuffix(".webp") if is_thumbnail(name) else name for name in names
    )
    return sorted({name for name in folded if is_key(name)})


def shared_name(name: str) -> str:
    """The place of a file that is no picture, below the store's root. Raises ValueError for a name that leads out."""
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a file's name")
    return f"{SHARED_FILES}/{name}"


def is_key(text: str) -> bool:
    """Whether `text` has the form of a picture's key."""
    return _KEY.fullmatch(text) is not None


def is_thumbnail(text: str) -> bool:
    """Whether `text` has the form of a thumbnail's key."""
    return _THUMBNAIL.fullmatch(text) is not None


def file_name(key: str) -> str:
    """The last part of a key, as the name of a downloaded file."""
    return key.rpartition("/")[2]


def media_type_of(key: str) -> str:
    """The media type of a picture, by its key's ending. Raises KeyError for a text that is no key."""
    return _MEDIA_TYPES[key.rpartition(".")[2]]


def extension_of(media_type: str) -> str:
    """The ending of a picture's key for its media type, without the dot. Raises KeyError for another type."""
    return _EXTENSIONS[media_type]
