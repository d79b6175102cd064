"""What is said of a picture, and that hostile files get an answer and nothing else."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from counts import repeats
from proof import RECEIPT, icon, keys, landscape, pixels_of, proven, resaved
from schnell.errors import UnreadablePictureError
from schnell.provenance.file_parts import without_credentials
from schnell.provenance.isolation import IsolatedChecks
from schnell.provenance.receipt import mark_number
from schnell.provenance.verification import NOTHING_FOUND, verify

ROOT = keys().roots_pem()
ID = f"{mark_number(RECEIPT.to_json()):010x}"


def file_of(picture: Image.Image, file_format: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(data)), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_picture_of_ours_says_the_same_in_four_ways() -> None:
    found = verify(proven(), roots_pem=ROOT).to_json()
    assert found["credentials"]["state"] == "trusted"
    assert (found["mark"]["found"], found["mark"]["id"]) == (True, ID)
    assert found["metadata"] == {"digital_source_type": "trainedAlgorithmicMedia"}
    assert found["receipt"]["fields"] == RECEIPT.to_json()
    assert (found["receipt"]["agrees_with_mark"], found["receipt"]["agrees_with_credentials"]) == (True, True)
    assert found["summary"] == "made by a model, according to signed credentials, the invisible mark and the metadata"


def test_a_saved_copy_keeps_the_mark_alone() -> None:
    copy = resaved(Image.open(io.BytesIO(proven(picture=landscape()))), "JPEG", quality=80)
    found = verify(file_of(copy, quality=90)).to_json()
    assert (found["credentials"]["state"], found["receipt"]) == ("absent", None)
    assert (found["mark"]["found"], found["mark"]["id"]) == (True, ID)
    assert found["summary"] == "made by a model, according to the invisible mark"


def test_of_nothing_found_it_says_that_this_proves_nothing() -> None:
    found = verify(file_of(landscape(256)))
    assert not found.found_anything
    assert found.summary == NOTHING_FOUND


def test_a_receipt_of_another_picture_does_not_agree_with_the_mark() -> None:
    other = without_credentials(proven()).replace(b'"seed":7', b'"seed":8')
    found = verify(other).to_json()
    assert found["receipt"]["agrees_with_mark"] is False


def test_changed_pixels_break_the_credentials_in_the_summary_too() -> None:
    broken = bytearray(proven())
    broken[len(broken) // 2] ^= 1
    assert "do not fit this picture" in verify(bytes(broken), roots_pem=ROOT).summary


def test_the_mark_is_found_in_pictures_larger_than_are_searched() -> None:
    marked = Image.open(io.BytesIO(proven(picture=icon(1024)))).convert("RGB")
    found = verify(file_of(marked.resize((3000, 3000)), quality=90))
    assert found.mark is not None
    assert found.mark.found


def test_a_cropped_and_resized_picture_is_found_when_searched_thoroughly() -> None:
    marked = Image.open(io.BytesIO(proven(picture=icon(1024)))).convert("RGB")
    file = file_of(marked.crop((51, 30, 974, 953)).resize((700, 700)), quality=90)
    found = verify(file, thorough=True)
    assert found.mark is not None
    assert found.mark.found


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "AVIF"])
def test_other_kinds_of_files_are_read_too(file_format: str) -> None:
    assert verify(file_of(icon(256), file_format)).credentials.state == "absent"


@pytest.mark.parametrize("data", [b"", b"hello", b"%PDF-1.4", b"<svg/>", b"\x00" * 100])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadablePictureError, match="this is not a"):
        verify(data)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a billion pixels": lambda: png_that_claims(40_000, 25_000),
    "many pixels, no data": lambda: png_that_claims(7_000, 7_000),
    "a bomb": lambda: png_that_claims(5_000, 5_000, b"\0" * 75_005_000),
    "a bomb of text": lambda: (
        png_that_claims(8, 8)[:-12] + png_chunk(b"zTXt", b"schnell\0\0" + zlib.compress(b"{" * 80_000_000))
    ),
    "cut off": lambda: proven()[:5000],
    "cut off in the header": lambda: proven("jpeg")[:30],
    "huge manifest": lambda: proven("png")[:33] + png_chunk(b"caBX", b"\0" * 8_000_000) + proven("png")[33:],
    "manifest of nonsense": lambda: proven("png")[:33] + png_chunk(b"caBX", b"jumbnonsense" * 99) + proven("png")[33:],
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_hostile_file_gets_an_answer(kind: str) -> None:
    try:
        found = await IsolatedChecks().verify(HOSTILE[kind](), roots_pem=ROOT, thorough=False)
    except UnreadablePictureError:
        return  # which is a plain answer over HTTP
    assert found["credentials"]["state"] != "trusted"


def test_any_mutation_of_a_signed_file_gets_an_answer_and_no_trust() -> None:
    chance = random.Random(0)
    small = icon(256)
    files = [proven("webp", small), proven("jpeg", small), proven("png", small)]
    originals = [without_credentials(file) for file in files]
    for _ in range(repeats(500)):
        data = bytearray(chance.choice(files))
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        if bytes(data) in files:
            continue
        try:
            found = verify(bytes(data), roots_pem=ROOT)
        except UnreadablePictureError:
            continue
        # bits that say nothing, such as padding between the credentials' own parts, may change
        assert found.credentials.state != "trusted" or without_credentials(bytes(data)) in originals


async def test_a_large_picture_is_checked_and_the_next_one_after_it() -> None:
    checks = IsolatedChecks()
    large = np.zeros((3_000, 4_000, 3), np.uint8)
    found = await checks.verify(file_of(Image.fromarray(large), "PNG", compress_level=1), roots_pem="", thorough=False)
    assert (found["width"], found["mark"]["found"]) == (4_000, False)
    # and the next one is served
    assert (await checks.verify(proven(), roots_pem=ROOT, thorough=False))["credentials"]["state"] == "trusted"


def test_pixels_are_those_that_were_marked() -> None:
    assert pixels_of(Image.open(io.BytesIO(proven("png")))).shape == (512, 512, 3)
