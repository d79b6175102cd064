"""Data of any length inside a JPEG file, spread over application segments.

A JPEG segment holds 65,533 bytes. As ICC profiles are (https://www.color.org/specification/ICC.2-2023.pdf, annex B),
longer data are cut into numbered pieces, each in a segment of its own: a name, the piece's number from 1, the count of
pieces, and its bytes. Readers that do not know the name skip the segments.
"""

from collections.abc import Iterable
from typing import Final

#: APP12. Others have APP1 (EXIF, XMP), APP2 (ICC), APP11 (C2PA), APP13 (Photoshop) and APP14 (Adobe).
_MARKER: Final = b"\xff\xec"
_NAME: Final = b"schnell\0"
_START: Final = b"\xff\xd8"
#: A segment's length counts its own two bytes, the name, the two numbers, and the piece.
_MOST_IN_PIECE: Final = 0xFFFF - 2 - len(_NAME) - 2
_MOST_PIECES: Final = 255
#: EXIF is one segment; the `Exif\0\0` at its beginning counts.
MAX_EXIF_BYTES: Final = 0xFFFF - 2


def add_segments(jpeg: bytes, data: bytes) -> bytes:
    """The file `jpeg` with `data` in segments after its first ones (JFIF, EXIF).

    Raises:
        ValueError: it is no JPEG, or the data are longer than 255 segments hold (16.7 MB).
    """
    pieces = [data[start : start + _MOST_IN_PIECE] for start in range(0, len(data), _MOST_IN_PIECE)]
    if not jpeg.startswith(_START) or len(pieces) > _MOST_PIECES:
        raise ValueError("no JPEG file, or more data than it can hold")
    place = len(_START)
    # readers expect JFIF (APP0) and EXIF (APP1) to come first
    while jpeg[place : place + 1] == b"\xff" and jpeg[place + 1] in {0xE0, 0xE1}:
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4])
    segments = b"".join(
        _MARKER + (len(body) + 2).to_bytes(2) + body
        for number, piece in enumerate(pieces, start=1)
        for body in (_NAME + bytes((number, len(pieces))) + piece,)
    )
    return jpeg[:place] + segments + jpeg[place:]


def join_segments(segments: Iterable[tuple[str, bytes]]) -> bytes | None:
    """What `add_segments` has written, out of a file's application segments by name, as Pillow's `applist` has them.

    None where there is nothing of it, or where a piece is missing.
    """
    pieces: dict[int, bytes] = {}
    count = 0
    for name, body in segments:
        if name == "APP12" and body.startswith(_NAME) and len(body) >= len(_NAME) + 2:
            number, count = body[len(_NAME)], body[len(_NAME) + 1]
            pieces[number] = body[len(_NAME) + 2 :]
    if not pieces or set(pieces) != set(range(1, count + 1)):
        return None
    return b"".join(pieces[number] for number in sorted(pieces))
