"""The parts of a picture's file: which one holds its credentials, and the file without it.

WebP holds them in a RIFF chunk `C2PA`, PNG in a chunk `caBX`, JPEG in APP11 segments of JUMBF (C2PA 2.2, appendix A).
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from schnell.errors import UnreadablePictureError

_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_APP11: Final = b"\xff\xeb"
_SCAN: Final = b"\xff\xda"


class _Part(NamedTuple):
    """Bytes `start` to `end` of a file, and whether they hold credentials."""

    start: int
    end: int
    is_credentials: bool


def media_type_in(data: bytes) -> str | None:
    """The media type of a PNG, WebP or JPEG file by its first bytes; None for anything else."""
    if data.startswith(_PNG_START):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "image/jpeg" if data.startswith(b"\xff\xd8\xff") else None


def without_credentials(data: bytes) -> bytes:
    """The file as it was before it was signed, byte for byte; one without credentials comes back as it is.

    Raises:
        UnreadablePictureError: not a PNG, WebP or JPEG file, or a damaged one.
    """
    kind = media_type_in(data)
    if kind is None:
        raise UnreadablePictureError("the file is not a PNG, WebP or JPEG picture")
    try:
        kept = b"".join(data[part.start : part.end] for part in _READERS[kind](data) if not part.is_credentials)
    except (IndexError, ValueError) as cause:
        raise UnreadablePictureError("the picture's file is damaged") from cause
    if kind != "image/webp":
        return kept
    # RIFF states its length in the header
    return kept[:4] + (len(kept) - 8).to_bytes(4, "little") + kept[8:]


def _webp_parts(data: bytes) -> Iterator[_Part]:
    yield _Part(0, 12, is_credentials=False)
    at = 12
    while at < len(data):
        size = _number(data, at + 4, 4, "little")
        # chunks are padded to an even length
        end = at + 8 + size + size % 2
        yield _Part(at, end, is_credentials=data[at : at + 4] == b"C2PA")
        at = end


def _png_parts(data: bytes) -> Iterator[_Part]:
    at = len(_PNG_START)
    yield _Part(0, at, is_credentials=False)
    while at < len(data):
        end = at + 12 + _number(data, at, 4, "big")
        yield _Part(at, end, is_credentials=data[at + 4 : at + 8] == b"caBX")
        at = end


def _jpeg_parts(data: bytes) -> Iterator[_Part]:
    yield _Part(0, 2, is_credentials=False)
    at = 2
    # segments carry their length up to the scan, which runs to the end of the file
    while (marker := data[at : at + 2]) != _SCAN:
        if len(marker) < 2 or marker[0] != 0xFF:
            raise ValueError
        end = at + 2 + _number(data, at + 2, 2, "big")
        yield _Part(at, end, is_credentials=marker == _APP11 and data[at + 4 : at + 6] == b"JP")
        at = end
    yield _Part(at, len(data), is_credentials=False)


def _number(data: bytes, at: int, size: int, order: str) -> int:
    field = data[at : at + size]
    if len(field) < size:
        raise ValueError
    return int.from_bytes(field, "little" if order == "little" else "big")


_READERS: Final[dict[str, Callable[[bytes], Iterator[_Part]]]] = {
    "image/webp": _webp_parts,
    "image/png": _png_parts,
    "image/jpeg": _jpeg_parts,
}
