from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from schnell.errors import ImageMetadataError
from schnell.provenance.image_file import encode_image, read_receipt
from schnell.provenance.receipt import AdapterReceipt, Receipt, mark_number, spec_from_receipt
from schnell.spec import OutputFormat

RECEIPT = Receipt(
    engine="1.2.3",
    model="schnell-mini",
    model_sha256="ab" * 32,
    precision="float32",
    prompt='red apple, 赤いリンゴ 🍎 "quoted" <lora>',
    seed=7,
    width=256,
    height=320,
    steps=3,
    go_fast=True,
    output_format="webp",
    output_quality=80,
    loras=(AdapterReceipt("black-light", "cd" * 32, 0.8),),
)
FORMATS: list[OutputFormat] = ["webp", "jpeg", "png"]


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (320, 256, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_receipt_is_read_back_whole(picture: Image.Image, file_format: OutputFormat, tmp_path: Path) -> None:
    receipt = replace(RECEIPT, output_format=file_format)
    (tmp_path / "picture").write_bytes(encode_image(picture, receipt))
    assert read_receipt(tmp_path / "picture") == receipt.to_json()


@settings(max_examples=25, deadline=None)
@given(prompt=st.text(min_size=1, max_size=200).filter(str.strip), file_format=st.sampled_from(FORMATS))
def test_any_prompt_survives_in_a_file(
    prompt: str, file_format: OutputFormat, tmp_path_factory: pytest.TempPathFactory
) -> None:
    receipt = replace(RECEIPT, prompt=prompt, output_format=file_format)
    path = tmp_path_factory.mktemp("any") / "picture"
    path.write_bytes(encode_image(Image.new("RGB", (8, 8)), receipt))
    assert spec_from_receipt(read_receipt(path)).prompt == prompt


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_same_picture_and_receipt_give_the_same_bytes(picture: Image.Image, file_format: OutputFormat) -> None:
    receipt = replace(RECEIPT, output_format=file_format)
    assert encode_image(picture, receipt) == encode_image(picture, receipt)


@pytest.mark.parametrize("file_format", ["webp", "jpeg"])
def test_quality_decides_the_size_of_the_file(picture: Image.Image, file_format: OutputFormat) -> None:
    sizes = [
        len(encode_image(picture, replace(RECEIPT, output_format=file_format, output_quality=q)))
        for q in (0, 10, 50, 90, 100)
    ]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes)


def test_png_carries_automatic1111s_parameters(picture: Image.Image) -> None:
    file = Image.open(BytesIO(encode_image(picture, replace(RECEIPT, output_format="png"))))
    text = file.info["parameters"]
    assert text.startswith(RECEIPT.prompt)
    assert "Steps: 3" in text
    assert "Seed: 7" in text
    assert "Size: 256x320" in text
    assert "<lora:black-light:0.8>" in text


@pytest.mark.parametrize("file_format", ["webp", "jpeg"])
def test_exif_carries_the_parameters_as_a_user_comment(picture: Image.Image, file_format: OutputFormat) -> None:
    file = Image.open(BytesIO(encode_image(picture, replace(RECEIPT, output_format=file_format))))
    comment = file.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be").startswith(RECEIPT.prompt)


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_file_says_that_a_model_made_it(picture: Image.Image, file_format: OutputFormat) -> None:
    assert b"trainedAlgorithmicMedia" in encode_image(picture, replace(RECEIPT, output_format=file_format))


def test_a_foreign_picture_has_no_receipt(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "foreign.png")
    with pytest.raises(ImageMetadataError, match="no receipt"):
        read_receipt(tmp_path / "foreign.png")


@given(st.binary(max_size=400))
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    path = Path("/tmp/schnell-not-a-picture")  # noqa: S108  # hypothesis has no function-scoped folder
    path.write_bytes(data)
    with pytest.raises(ImageMetadataError):
        read_receipt(path)


@pytest.mark.parametrize(
    "change",
    [
        {"schnell": 2},
        {"seed": "x"},
        {"width": 255},
        {"prompt": ""},
        {"loras": [{"name": "x"}]},
        {"num_inference_steps": 9},
    ],
)
def test_a_receipt_with_wrong_values_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ImageMetadataError):
        spec_from_receipt(RECEIPT.to_json() | change)


def test_a_receipt_without_a_mark_is_drawn_without_one() -> None:
    """As receipts were before there were marks: the same bytes as then."""
    assert not spec_from_receipt(RECEIPT.to_json()).watermark
    assert spec_from_receipt(replace(RECEIPT, mark="schnell.mark.1").to_json()).watermark


def test_the_number_of_a_mark_is_the_same_on_every_machine() -> None:
    assert f"{mark_number(RECEIPT.to_json()):010x}" == "6c78855193"
    assert mark_number(RECEIPT.to_json()) != mark_number(replace(RECEIPT, seed=8).to_json())
