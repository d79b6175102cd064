"""Checking where a picture comes from: its credentials, its mark, its metadata and its receipt, each for itself.

None of them proves that a picture was not made by a model: all can be removed.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
from PIL import Image

from schnell.errors import ImageMetadataError, UnreadablePictureError
from schnell.provenance.credentials_reading import CredentialsReading, read_credentials
from schnell.provenance.detection import MarkReading, find_mark
from schnell.provenance.image_file import receipt_inside
from schnell.provenance.receipt import mark_number

#: Said where a picture carries nothing at all.
NOTHING_FOUND: Final = "nothing found, which proves nothing"
#: What claims more pixels is not decoded.
MAX_PIXELS: Final = 64_000_000
#: The mark is searched for in no more than this; a larger picture is made smaller first. 1440 is the largest drawn.
_LONGEST_SIDE: Final = 1536
_SOURCE_TYPE: Final = re.compile(rb"digitalsourcetype/([A-Za-z]{1,60})")
#: First bytes of a file, where they stand, and the media type that they tell.
_SIGNATURES: Final = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (8, b"WEBP", "image/webp"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftypheic", "image/heic"),
    (4, b"ftypmif1", "image/heif"),
)


@dataclass(frozen=True, slots=True)
class ReceiptReading:
    """A receipt in a picture's metadata. `agrees_with_mark` is None where there is no mark to compare it with."""

    fields: Mapping[str, Any]
    agrees_with_mark: bool | None
    agrees_with_credentials: bool | None


@dataclass(frozen=True, slots=True)
class Verification:
    """What a picture carries. `mark` is None where its pixels could not be read; `notes` say why.

    `source_type` is IPTC's word in the metadata, such as `trainedAlgorithmicMedia`.
    """

    media_type: str
    width: int | None
    height: int | None
    credentials: CredentialsReading
    mark: MarkReading | None
    source_type: str | None
    receipt: ReceiptReading | None
    notes: tuple[str, ...] = ()

    @property
    def found_anything(self) -> bool:
        """Whether the picture carries any of the four."""
        has_mark = self.mark is not None and self.mark.found
        return has_mark or self.credentials.state != "absent" or bool(self.source_type or self.receipt)

    @property
    def summary(self) -> str:
        """One sentence on the whole."""
        if not self.found_anything:
            return NOTHING_FOUND
        if self.credentials.state == "invalid":
            return "the credentials do not fit this picture: it was changed after it was signed, or they are another's"
        said = [
            *(["signed credentials"] if self.credentials.says_model_made else []),
            *(["the invisible mark"] if self.mark is not None and self.mark.found else []),
            *(["the metadata"] if self.source_type and "rainedAlgorithmicMedia" in self.source_type else []),
        ]
        if said:
            *others, last = said
            named = f"{', '.join(others)} and {last}" if others else last
            return f"made by a model, according to {named}"
        return "it tells something of its origin, but not that a model has made it"

    def to_json(self) -> dict[str, Any]:
        """The form in which `schnell verify --json` prints it."""
        receipt = None if self.receipt is None else asdict(self.receipt)
        return {
            "summary": self.summary,
            "media_type": self.media_type,
            "width": self.width,
            "height": self.height,
            "credentials": asdict(self.credentials) | {"says_model_made": self.credentials.says_model_made},
            "mark": _mark_json(self.mark),
            "metadata": {"digital_source_type": self.source_type},
            "receipt": receipt,
            "notes": list(self.notes),
        }


def verify(data: bytes, *, roots_pem: str = "", thorough: bool = False) -> Verification:
    """Check a picture's file. `thorough` searches for the mark at any scale, at ten times the cost.

    Raises:
        UnreadablePictureError: the bytes are not a picture's file of a kind that is known here.
    """
    media_type = _media_type_of(data)
    credentials = read_credentials(data, media_type, roots_pem)
    notes: list[str] = []
    picture = _open(data, notes)
    mark = None if picture is None else _search(picture, notes, thorough=thorough)
    receipt = None if picture is None else _read_receipt(picture, notes)
    return Verification(
        media_type=media_type,
        width=None if picture is None else picture.width,
        height=None if picture is None else picture.height,
        credentials=credentials,
        mark=mark,
        source_type=None if picture is None else _source_type_in(picture),
        receipt=None if receipt is None else _compare(receipt, mark, credentials),
        notes=tuple(notes),
    )


def _media_type_of(data: bytes) -> str:
    for start, signature, media_type in _SIGNATURES:
        if data[start : start + len(signature)] == signature:
            return media_type
    raise UnreadablePictureError("this is not a PNG, JPEG, WebP, GIF, TIFF, AVIF or HEIF picture")


def _open(data: bytes, notes: list[str]) -> Image.Image | None:
    """The picture, its pixels not decoded yet; None, with a note, where it is damaged or too large."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of many pixels before it refuses them; the bound is ours
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(BytesIO(data))
    # Pillow's readers raise whatever their parsing of damaged bytes ends in
    except Exception as cause:  # noqa: BLE001
        notes.append(f"the pixels cannot be read: {_one_line(cause)}")
        return None
    if picture.width * picture.height > MAX_PIXELS:
        notes.append(f"{picture.width} x {picture.height} pixels are more than are looked at ({MAX_PIXELS:,})")
        return None
    return picture


def _search(picture: Image.Image, notes: list[str], *, thorough: bool) -> MarkReading | None:
    try:
        pixels = picture.convert("RGB")
    except Exception as cause:  # noqa: BLE001 - as above
        notes.append(f"the pixels cannot be read: {_one_line(cause)}")
        return None
    if max(pixels.size) <= _LONGEST_SIDE:
        return find_mark(np.asarray(pixels), thorough=thorough)
    # a screenshot holds the picture at its own size, a copy was made larger
    left, top = ((side - min(side, _LONGEST_SIDE)) // 2 for side in pixels.size)
    middle = pixels.crop((left, top, left + _LONGEST_SIDE, top + _LONGEST_SIDE)) if left and top else pixels
    small = pixels.copy()
    small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    found = find_mark(np.asarray(small), thorough=thorough)
    if found.found or max(middle.size) > _LONGEST_SIDE:
        return found
    return max(found, find_mark(np.asarray(middle), thorough=thorough), key=lambda each: each.certainty)


def _read_receipt(picture: Image.Image, notes: list[str]) -> dict[str, Any] | None:
    try:
        return receipt_inside(picture)
    except ImageMetadataError as cause:
        notes.append(cause.message)
    except Exception as cause:  # noqa: BLE001 - damaged EXIF raises whatever Pillow's parsing ends in
        notes.append(f"the metadata cannot be read: {_one_line(cause)}")
    return None


def _source_type_in(picture: Image.Image) -> str | None:
    packet = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp") or b""
    text = packet.encode("utf-8", "replace") if isinstance(packet, str) else bytes(packet)
    found = _SOURCE_TYPE.search(text)
    return found[1].decode("ascii") if found else None


def _compare(fields: dict[str, Any], mark: MarkReading | None, credentials: CredentialsReading) -> ReceiptReading:
    number = None if mark is None else mark.number
    signed = credentials.receipt
    with_mark = None if number is None else number == mark_number(fields)
    # the signed one may lack the prompt
    with_credentials = None if signed is None else all(fields.get(name) == value for name, value in signed.items())
    return ReceiptReading(fields, with_mark, with_credentials)


def _mark_json(mark: MarkReading | None) -> dict[str, Any]:
    if mark is None:
        return {"found": None, "id": None}
    if not mark.found:
        return {"found": False, "id": None, "certainty": round(mark.certainty, 1)}
    return {
        "found": True,
        "id": None if mark.number is None else f"{mark.number:010x}",
        "certainty": round(mark.certainty, 1),
        "orientation": mark.orientation,
        "scale": round(mark.scale, 4),
    }


def _one_line(cause: Exception) -> str:
    return " ".join(str(cause).split())[:200] or type(cause).__name__
