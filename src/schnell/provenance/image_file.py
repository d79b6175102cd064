"""Pictures as files: encoded at the asked quality, with their receipt inside.

PNG carries text chunks (`parameters` as Automatic1111 writes it, `schnell` with the JSON receipt); WebP and JPEG carry
the same two in EXIF (UserComment and MakerNote). A receipt that has no room in a JPEG's EXIF stands in segments beside
it. All carry an XMP packet that marks the picture as made by a trained model, in the words of IPTC's Digital Source
Type vocabulary (https://cv.iptc.org/newscodes/digitalsourcetype/).
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import (
    ExifTags,
    Image,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401 - registers itself; without it, Pillow imports all of its forty formats to find WebP
)

from schnell.errors import ImageMetadataError
from schnell.provenance.jpeg_segments import MAX_EXIF_BYTES, add_segments, join_segments
from schnell.provenance.receipt import Receipt, receipt_text
from schnell.spec import OutputFormat

MEDIA_TYPES: Final[dict[OutputFormat, str]] = {"webp": "image/webp", "jpeg": "image/jpeg", "png": "image/png"}
#: EXIF's UserComment names its encoding in the first eight bytes; Automatic1111's readers expect UTF-16, high byte
#: first.
_EXIF_COMMENT_PREFIX: Final = b"UNICODE\0"
_MAKER_NOTE_PREFIX: Final = b"schnell\0"
# at 1024x1024, method 2 halves libwebp's time for 4% more bytes, level 1 a third of zlib's for 14% more
_WEBP_METHOD: Final = 2
_PNG_COMPRESS_LEVEL: Final = 1
#: Characters of Automatic1111's text that surely fit into EXIF: each takes four bytes at most.
_MOST_TEXT: Final = 15_000
#: Far above the largest picture that is drawn, 1440x1440; what claims more is not read further.
_MAX_RECEIPT_PIXELS: Final = 64_000_000
_XMP: Final = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:DigitalSourceType='
    b'"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/></rdf:RDF></x:xmpmeta>'
    b'<?xpacket end="r"?>'
)


def encode_image(picture: Image.Image, receipt: Receipt) -> bytes:
    """The RGB picture as a file of `receipt.output_format` at `receipt.output_quality`, with the receipt inside.

    The same picture and receipt give the same bytes.
    """
    file = BytesIO()
    quality = receipt.output_quality
    if receipt.output_format == "png":
        picture.save(file, "PNG", compress_level=_PNG_COMPRESS_LEVEL, pnginfo=_png_text(receipt))
    elif receipt.output_format == "webp":
        picture.save(file, "WEBP", quality=quality, method=_WEBP_METHOD, exif=_exif(receipt), xmp=_XMP)
    else:
        # libjpeg counts from 1, and without 4:4:4 sampling small coloured icons bleed at high quality
        sampling = 0 if quality >= 90 else 2
        exif, beside = _exif_and_rest(receipt)
        picture.save(file, "JPEG", quality=max(1, quality), subsampling=sampling, exif=exif, xmp=_XMP)
        return add_segments(file.getvalue(), beside)
    return file.getvalue()


def read_receipt(path: Path) -> dict[str, Any]:
    """The JSON receipt inside a picture that schnell made.

    Raises:
        ImageMetadataError: not a picture, too large to be one of ours, or without a receipt.
    """
    try:
        with Image.open(path, formats=["PNG", "WEBP", "JPEG"]) as picture:
            if picture.width * picture.height > _MAX_RECEIPT_PIXELS:
                raise ImageMetadataError(f"{path.name} is too large to be a picture of schnell's")
            receipt = receipt_inside(picture)
    # Pillow raises SyntaxError and ValueError too for damaged chunks and EXIF
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ImageMetadataError(f"{path.name} is not a PNG, WebP or JPEG picture: {error}") from error
    if receipt is None:
        raise ImageMetadataError(
            f"{path.name} carries no receipt: it was not made by schnell, or its metadata was removed"
        )
    return receipt


def receipt_inside(picture: Image.Image) -> dict[str, Any] | None:
    """The JSON receipt in an open picture's metadata; None without one. Raises ImageMetadataError for a damaged one."""
    text = _receipt_text(picture)
    if text is None:
        return None
    try:
        receipt = json.loads(text)
    except ValueError as error:
        raise ImageMetadataError("the receipt in the picture is not JSON") from error
    if not isinstance(receipt, dict):
        raise ImageMetadataError("the receipt in the picture is not a JSON object")
    return receipt


def _receipt_text(picture: Image.Image) -> str | None:
    if picture.format == "PNG":
        text = picture.info.get("schnell")
        return str(text) if text is not None else None
    if (beside := join_segments(getattr(picture, "applist", ()))) is not None:
        return beside.decode("ascii", "replace")
    note = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.MakerNote)
    if not isinstance(note, bytes) or not note.startswith(_MAKER_NOTE_PREFIX):
        return None
    return note.removeprefix(_MAKER_NOTE_PREFIX).decode("ascii", "replace")


def _png_text(receipt: Receipt) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    # iTXt chunks, as prompts are UTF-8 and the plain tEXt is Latin-1; the receipt's JSON is ASCII
    info.add_itxt("parameters", receipt.to_parameters())
    info.add_text("schnell", receipt_text(receipt.to_json()))
    info.add_itxt("XML:com.adobe.xmp", _XMP.decode("utf-8"))
    return info


def _exif_and_rest(receipt: Receipt) -> tuple[bytes, bytes]:
    """A JPEG's EXIF, and what has no room in it: its one segment ends at 64 KiB.

    Then the receipt goes into segments of its own, whole, and Automatic1111's text is cut if it is too long alone.
    """
    whole = _exif(receipt).tobytes()
    if len(whole) <= MAX_EXIF_BYTES:
        return whole, b""
    text = receipt.to_parameters()
    # the settings stand in its last line, which is kept; the prompt before them is cut
    head, _, settings = text.rpartition("\n")
    shortened = text if len(text) <= _MOST_TEXT else f"{head[: max(0, _MOST_TEXT - len(settings))]}…\n{settings}"
    return _exif(receipt, shortened, with_receipt=False).tobytes(), receipt_text(receipt.to_json()).encode("ascii")


def _exif(receipt: Receipt, parameters: str | None = None, *, with_receipt: bool = True) -> Image.Exif:
    text = receipt.to_parameters() if parameters is None else parameters
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = f"schnell {receipt.engine}"
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.UserComment] = _EXIF_COMMENT_PREFIX + text.encode("utf-16-be", "replace")
    if with_receipt:
        details[ExifTags.Base.MakerNote] = _MAKER_NOTE_PREFIX + receipt_text(receipt.to_json()).encode("ascii")
    return exif
