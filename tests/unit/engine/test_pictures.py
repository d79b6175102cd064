import pytest
from PIL import Image

from schnell.engine.pictures import fit_to_size
from schnell.models.folder import ModelFolder
from schnell.spec import ASPECT_RATIOS, MEGAPIXELS, Size, resolve_size

SIZES = [resolve_size(ratio, megapixels) for ratio in ASPECT_RATIOS for megapixels in MEGAPIXELS]


@pytest.mark.parametrize("size", [*SIZES, Size(256, 1440), Size(288, 1376)])
def test_the_size_asked_for_is_the_size_delivered(mini: ModelFolder, size: Size) -> None:
    grid = mini.token_grid(size)
    drawn = Image.new("RGB", (grid.width * mini.pixels_per_token, grid.height * mini.pixels_per_token))
    assert fit_to_size(drawn, size, mini.draw_scale).size == size


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    drawn = Image.new("RGB", (64, 64))
    assert fit_to_size(drawn, Size(64, 64), 1) is drawn


def test_the_cut_is_centred() -> None:
    drawn = Image.new("RGB", (66, 64))
    drawn.putpixel((1, 0), (255, 0, 0))
    assert fit_to_size(drawn, Size(64, 64), 1).getpixel((0, 0)) == (255, 0, 0)
