import pytest
import torch
from torch import Tensor

from schnell_mini.captions import COLOURS
from schnell_mini.learned.looks import PALETTE, Look
from schnell_mini.lora_styles import BUNDLED, BundledLora

LORAS = {lora.name: lora for lora in BUNDLED}
GREY = (0.6, 0.6, 0.6)


def disc(colour: tuple[float, float, float] = (0.86, 0.12, 0.12)) -> Tensor:
    """A premultiplied disc of 80 pixels' radius in the middle of 256."""
    steps = torch.arange(256) - 127.5
    inside = ((steps[:, None].square() + steps.square()) < 80**2).float()
    return torch.stack([*(part * inside for part in colour), inside])[None]


def painted(name: str, icon: Tensor, ground: str = "white") -> Tensor:
    return LORAS[name].paint(icon, torch.tensor([COLOURS[LORAS[name].look.ground or ground]]))[0]


@pytest.mark.parametrize("lora", BUNDLED, ids=lambda lora: lora.name)
def test_every_look_leaves_the_corners_to_its_ground(lora: BundledLora) -> None:
    picture = painted(lora.name, disc(), "teal")
    wanted = COLOURS[lora.look.ground or "teal"]
    assert picture.shape == (3, 256, 256)
    assert (picture[:, 4, 4] - torch.tensor(wanted)).abs().max() < 0.02


def test_all_looks_differ() -> None:
    looks = [painted(name, disc()) for name in LORAS]
    for number, one in enumerate(looks):
        assert all((one - other).abs().mean() > 0.01 for other in looks[:number])


def test_line_draws_a_dark_edge_around_nothing() -> None:
    row = painted("line", disc())[:, 128].mean(0)
    edge = round(128 - 80 * 0.8125)
    assert row[edge - 6 : edge + 6].min() < 0.3
    assert row[128] > 0.98


@pytest.mark.parametrize("contrast", [0.5, 0.3])
def test_a_faint_mark_within_an_object_is_drawn_as_a_strong_one(contrast: float) -> None:
    plate = disc((0.5, 0.5, 0.5))
    plate[:, :3, 108:148, 108:148] += contrast
    picture = painted("line", plate)
    assert picture[:, 100:156, 100:156].min() < 0.3


def test_shading_alone_is_no_line() -> None:
    plate = disc((0.5, 0.5, 0.5))
    plate[:, :3] += 0.2 * plate[:, 3:] * torch.linspace(0, 1, 256)
    assert painted("line", plate)[:, 100:156, 100:156].min() > 0.9


def test_blueprint_draws_light_lines_around_lighter_blue() -> None:
    picture = painted("blueprint", disc())
    assert picture.amin(0).max() > 0.85
    assert (picture[:, 128, 128] > torch.tensor(COLOURS["blue"]) + 0.01).all()


def test_black_light_glows_in_the_icons_hue_and_grey_things_coldly() -> None:
    red, grey = painted("black-light", disc()), painted("black-light", disc(GREY))
    brightest = [each.flatten(1)[:, each.sum(0).argmax()] for each in (red, grey)]
    assert brightest[0][0] > 0.9 > 2 * brightest[0][1]
    assert brightest[1][2] > brightest[1][0]


def test_flat_has_a_white_rim_around_one_colour() -> None:
    row = painted("flat", disc())[:, 128]
    edge = round(128 - 80 * 0.8125)
    assert row[:, edge - 4 : edge].amin(0).max() > 0.9
    assert (row[:, 100:150] - row[:, 128:129]).abs().max() < 0.02


def test_pixels_are_squares_of_one_colour_of_the_palette() -> None:
    squares = painted("pixel", disc()).reshape(3, 16, 16, 16, 16).permute(1, 3, 0, 2, 4).flatten(3)
    assert (squares - squares[..., :1]).abs().max() < 1e-6
    nearest = torch.cdist(squares[..., 0].reshape(-1, 3), torch.tensor(PALETTE)).amin(1)
    assert nearest.max() < 1e-3


def test_a_bundled_lora_answers_to_its_looks_first_phrase() -> None:
    look = Look("sepia", ("old photograph", "sepia"), lambda icons, _: icons[:, :3], "beige")
    lora = BundledLora(look, "As from an album.")
    assert (lora.name, lora.trigger, lora.background) == ("sepia", "old photograph", COLOURS["beige"])
    assert not lora.obeys_background
