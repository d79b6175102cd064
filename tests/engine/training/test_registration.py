from collections.abc import Callable

import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from schnell.spec import Size
from schnell.training.registration import Move, covered_tokens, frame, lay, register

CANVAS = Size(32, 32)
LOOKS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "plain": lambda picture: picture,
    "negative": ImageOps.invert,
    "dark": lambda picture: ImageEnhance.Brightness(picture).enhance(0.3),
}


def _picture() -> Image.Image:
    picture = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((60, 40, 190, 200), fill="orange")
    draw.rectangle((100, 80, 140, 220), fill="navy")
    return picture


def _drawing(move: Move) -> torch.Tensor:
    """What a base would draw of it, softly, in cells."""
    picture = _picture()
    return 0.9 * lay(picture, frame(Size(*picture.size), CANVAS, move), CANVAS, 1)


@pytest.mark.parametrize("move", [Move(1.0), Move(1.0, right=1, down=-1), Move(28 / 32, right=-2, down=2)])
@pytest.mark.parametrize("look", LOOKS)
def test_a_picture_is_found_where_it_is_drawn_whatever_its_look(move: Move, look: str) -> None:
    assert register([LOOKS[look](_picture())], [[_drawing(move)]], CANVAS) == [move]


def test_each_noise_has_a_place_of_its_own_and_all_have_one_size() -> None:
    moves = [Move(30 / 32, right=1), Move(30 / 32, right=-1, down=1)]
    assert register([_picture()], [[_drawing(move)] for move in moves], CANVAS) == moves


def test_a_drawing_of_one_colour_leaves_the_picture_in_the_middle() -> None:
    assert register([_picture()], [[torch.ones(3, 32, 32)]], CANVAS) == [Move(1.0)]


def test_a_picture_is_laid_whole_whatever_its_ratio() -> None:
    framing = frame(Size(400, 100), CANVAS, Move(1.0))
    assert (framing.size, framing.left, framing.top) == (Size(32, 8), 0, 12)
    laid = lay(Image.new("RGB", (400, 100), "red"), framing, CANVAS, 4)
    assert laid.shape == (3, 128, 128)
    assert torch.equal(laid[0], torch.ones(128, 128))


def test_what_lies_beside_a_picture_mirrors_its_edge() -> None:
    picture = Image.new("RGB", (64, 64), "black")
    ImageDraw.Draw(picture).rectangle((0, 0, 3, 63), fill="white")
    laid = lay(picture, frame(Size(64, 64), Size(8, 8), Move(1.0, right=1)), Size(8, 8), 8)
    assert torch.equal(laid[0, 0, :16].gt(0), torch.tensor([False] * 4 + [True] * 8 + [False] * 4))


def test_tokens_are_covered_by_the_part_that_the_picture_lies_on() -> None:
    covered = covered_tokens(frame(Size(64, 64), Size(8, 8), Move(1.0, right=1)), Size(4, 4))
    assert covered.view(4, 4)[0].tolist() == [0.5, 1.0, 1.0, 1.0]
