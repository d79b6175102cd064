"""The invisible mark: what it does to pixels, what it survives, and that it is never found where it is not."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from proof import icon, landscape, pixels_of, resaved
from schnell.provenance import convolutional
from schnell.provenance.detection import find_mark
from schnell.provenance.mark import embed

NUMBER = 0x71783B1C61
PICTURES = {"icon": icon(1024), "landscape": landscape(1024)}
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "WebP 80": lambda picture: resaved(picture, "WEBP", quality=80),
    "JPEG 50": lambda picture: resaved(picture, "JPEG", quality=50),
    "half size": lambda picture: picture.resize((512, 512), Image.Resampling.BICUBIC),
    "half size, JPEG 75": lambda picture: resaved(picture.resize((512, 512)), "JPEG", quality=75),
    "half of it, JPEG 75": lambda picture: resaved(picture.crop((301, 77, 813, 589)), "JPEG", quality=75),
    "darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.7),
    "mirrored": ImageOps.mirror,
    "turned by 90 degrees": lambda picture: picture.transpose(Image.Transpose.ROTATE_270),
}


def marked(picture: Image.Image, number: int = NUMBER) -> Image.Image:
    return Image.fromarray(embed(pixels_of(picture), number))


@pytest.mark.parametrize("kind", PICTURES)
def test_a_mark_and_its_number_survive_what_the_web_does(kind: str) -> None:
    copies = {name: find_mark(pixels_of(change(marked(PICTURES[kind])))) for name, change in CHANGES.items()}
    assert not [name for name, found in copies.items() if not found.found]
    # a wrong number is never read; none at all, seldom
    assert {found.number for found in copies.values()} <= {NUMBER, None}
    assert sum(found.number == NUMBER for found in copies.values()) >= len(CHANGES) - 1


@pytest.mark.parametrize(
    ("change", "orientation", "scale"),
    [
        ("mirrored", "mirrored", 1.0),
        ("turned by 90 degrees", "turned by 90 degrees", 1.0),
        ("half size", "upright", 0.5),
    ],
)
def test_a_reading_tells_orientation_and_scale(change: str, orientation: str, scale: float) -> None:
    found = find_mark(pixels_of(CHANGES[change](marked(PICTURES["icon"]))))
    assert (found.orientation, found.scale) == (orientation, scale)


@pytest.mark.parametrize("size", [(512, 512), (256, 256), (1344, 768), (257, 301)])
def test_pictures_of_every_size_are_marked(size: tuple[int, int]) -> None:
    found = find_mark(embed(pixels_of(icon(1440).resize(size)), NUMBER))
    assert (found.found, found.number) == (True, NUMBER)


@pytest.mark.parametrize("kind", PICTURES)
def test_a_clean_picture_carries_no_mark(kind: str) -> None:
    found = find_mark(pixels_of(PICTURES[kind]))
    assert (found.found, found.number) == (False, None)


def test_plain_ground_moves_by_one_step_at_most() -> None:
    ground = np.full((256, 256, 3), 128, np.uint8)
    change = embed(ground, NUMBER).astype(int) - 128
    assert np.abs(change).max() == 1
    # and there is no cast: all three colours move alike
    assert (np.ptp(change, axis=2) == 0).all()


@pytest.mark.parametrize("kind", PICTURES)
def test_a_mark_is_faint(kind: str) -> None:
    pixels = pixels_of(PICTURES[kind])
    error = np.mean((embed(pixels, NUMBER).astype(float) - pixels) ** 2)
    assert 10 * np.log10(255**2 / error) >= {"icon": 47, "landscape": 42}[kind]


def test_the_same_picture_and_number_give_the_same_pixels_everywhere() -> None:
    """Whole-number arithmetic: this sum is the same on every machine."""
    ramp = np.arange(192 * 160 * 3, dtype=np.int64).reshape(192, 160, 3)
    pixels = (ramp * 2654435761 % 2**32 >> 24).astype(np.uint8)
    assert int(embed(pixels, NUMBER).astype(np.int64).sum()) == 11_752_228


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_are_marked_without_overflow(value: int) -> None:
    pixels = embed(np.full((128, 128, 3), value, np.uint8), NUMBER)
    assert np.abs(pixels.astype(int) - value).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 300, 3), (7, 5, 3), (64, 64, 3)])
def test_a_picture_of_any_size_can_be_searched(shape: tuple[int, int, int]) -> None:
    assert not find_mark(np.full(shape, 100, np.uint8)).found


@given(number=st.integers(0, 2**40 - 1), noise=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_a_coded_number_is_read_through_noise_as_strong_as_itself(number: int, noise: int) -> None:
    signs = convolutional.encode(number)
    soft = signs + np.random.default_rng(noise).normal(0, 0.6, len(signs))
    assert convolutional.decode(soft) == (number, True)


def test_noise_alone_has_no_right_checksum() -> None:
    chance = np.random.default_rng(0)
    right = sum(convolutional.decode(chance.normal(size=convolutional.CODE_LENGTH))[1] for _ in range(300))
    assert right == 0
