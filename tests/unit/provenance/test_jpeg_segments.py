from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from schnell.provenance.image_file import encode_image, read_receipt
from schnell.provenance.jpeg_segments import add_segments, join_segments
from schnell.provenance.receipt import AdapterReceipt, Receipt, spec_from_receipt

LONGEST = Receipt(
    engine="1.2.3",
    model="schnell-mini",
    model_sha256="ab" * 32,
    precision="float32",
    prompt="\U0001f34e" * 4000,
    seed=4294967295,
    width=256,
    height=256,
    steps=4,
    go_fast=True,
    output_format="jpeg",
    output_quality=80,
    loras=tuple(AdapterReceipt(f"https://x.org/{i}/{'p' * 4000}.safetensors", "cd" * 32, 1.23456789) for i in range(8)),
)


def jpeg() -> bytes:
    file = BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, "JPEG", exif=b"Exif\0\0" + bytes(20))
    return file.getvalue()


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=1, max_size=100) | st.integers(65_000, 200_000).map(lambda size: b"a" * size))
def test_data_of_any_length_are_read_back(data: bytes) -> None:
    with Image.open(BytesIO(add_segments(jpeg(), data))) as found:
        assert join_segments(getattr(found, "applist", ())) == data
        assert found.getpixel((3, 3)) == Image.open(BytesIO(jpeg())).getpixel((3, 3))


def test_a_piece_that_is_missing_makes_it_nothing() -> None:
    with Image.open(BytesIO(add_segments(jpeg(), b"a" * 150_000))) as found:
        ours = [each for each in getattr(found, "applist", ()) if each[0] == "APP12"]
    assert len(ours) == 3
    assert join_segments(ours[1:]) is None
    assert join_segments([("APP12", b"Ducky\0\1\1")]) is None


def test_what_has_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="more data"):
        add_segments(jpeg(), bytes(17_000_000))
    with pytest.raises(ValueError, match="no JPEG"):
        add_segments(b"RIFF", b"x")


@pytest.mark.parametrize(
    "receipt",
    [LONGEST, replace(LONGEST, loras=()), replace(LONGEST, prompt="x" * 4000)],
    ids=["both", "prompt", "loras"],
)
def test_a_receipt_of_any_length_is_delivered_and_read_back(receipt: Receipt, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode_image(Image.new("RGB", (32, 32)), receipt))
    assert read_receipt(path) == receipt.to_json()
    assert spec_from_receipt(read_receipt(path)).prompt == receipt.prompt


def test_a_text_that_is_too_long_keeps_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode_image(Image.new("RGB", (32, 32)), LONGEST))
    with Image.open(path) as found:
        comment = found.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    text = comment.removeprefix(b"UNICODE\0").decode("utf-16-be")
    assert text.startswith("\U0001f34e" * 4000)
    assert "…\nSteps: 4, Sampler: Euler, CFG scale: 1, Seed: 4294967295" in text
