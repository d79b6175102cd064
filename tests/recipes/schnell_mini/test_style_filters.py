import numpy as np
import pytest
from PIL import Image, ImageDraw

from schnell_mini.style_filters import Style, paint_black_light, paint_blueprint, paint_flat, paint_line, paint_pixels

WHITE = (1.0, 1.0, 1.0)
STYLES = (paint_line, paint_flat, paint_black_light, paint_blueprint, paint_pixels)


@pytest.fixture
def red_disc() -> Image.Image:
    icon = Image.new("RGBA", (256, 256), (0, 255, 0, 0))  # hidden green: it must never show
    ImageDraw.Draw(icon).ellipse((48, 48, 208, 208), fill=(220, 30, 30, 255))
    return icon


def _values(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.float32) / 255


@pytest.mark.parametrize("paint", STYLES)
def test_every_look_is_a_whole_rgb_picture(paint: Style, red_disc: Image.Image) -> None:
    picture = paint(red_disc, WHITE)
    assert (picture.mode, picture.size) == ("RGB", (256, 256))


def test_all_looks_differ(red_disc: Image.Image) -> None:
    looks = [_values(paint(red_disc, WHITE)) for paint in STYLES]
    for i, one in enumerate(looks):
        for other in looks[i + 1 :]:
            assert np.abs(one - other).mean() > 0.01


@pytest.mark.parametrize("paint", [paint_line, paint_flat])
def test_hidden_colours_leave_no_fringe(paint: Style, red_disc: Image.Image) -> None:
    values = _values(paint(red_disc, WHITE))
    assert (values[..., 1] - values[..., 0]).max() < 0.02  # nowhere greener than red


def test_line_keeps_the_asked_background(red_disc: Image.Image) -> None:
    values = _values(paint_line(red_disc, (0.25, 0.45, 0.9)))
    np.testing.assert_allclose(values[4, 4], (0.25, 0.45, 0.9), atol=0.01)


def test_line_draws_a_dark_edge_around_a_grey_middle(red_disc: Image.Image) -> None:
    middle_row = _values(paint_line(red_disc, WHITE))[128]
    left = round(128 - 80 * 0.8125)
    assert middle_row[left : left + 6].mean(1).min() < 0.4
    assert 0.4 < middle_row[128].mean() < 0.6
    assert np.ptp(middle_row[128]) < 0.01


def test_flat_has_few_colours_and_keeps_the_asked_background(red_disc: Image.Image) -> None:
    picture = paint_flat(red_disc, (0.55, 0.83, 0.76))
    np.testing.assert_allclose(_values(picture)[4, 4], (0.55, 0.83, 0.76), atol=0.01)
    counted = sorted((count for count, _ in picture.getcolors(256**2) or []), reverse=True)
    assert sum(counted[:8]) > 0.97 * 256**2


def test_black_light_is_dark_around_and_glows_in_the_icons_hue(red_disc: Image.Image) -> None:
    values = _values(paint_black_light(red_disc, WHITE))
    assert values[3, 3].max() < 0.12
    brightest = values.reshape(-1, 3)[values.sum(axis=2).argmax()]
    assert brightest[0] > 0.9
    assert brightest[0] > 2 * brightest[1]


def test_black_light_gives_grey_things_a_cold_glow() -> None:
    icon = Image.new("RGBA", (256, 256))
    ImageDraw.Draw(icon).rectangle((80, 80, 176, 176), fill=(120, 120, 120, 255))
    values = _values(paint_black_light(icon, WHITE))
    brightest = values.reshape(-1, 3)[values.sum(axis=2).argmax()]
    assert brightest[2] > brightest[0]


def test_blueprint_draws_light_lines_around_lighter_blue_on_the_paper(red_disc: Image.Image) -> None:
    blue = (0.25, 0.45, 0.9)
    values = _values(paint_blueprint(red_disc, blue))
    np.testing.assert_allclose(values[4, 4], blue, atol=0.01)
    assert values.min(axis=2).max() > 0.9
    assert (values.min(axis=2) > 0.7).mean() < 0.1
    assert (values[128, 128] > np.array(blue) + 0.01).all()


def test_pixels_are_squares_of_one_colour_out_of_sixteen(red_disc: Image.Image) -> None:
    values = np.asarray(paint_pixels(red_disc, WHITE))
    squares = values.reshape(16, 16, 16, 16, 3).transpose(0, 2, 1, 3, 4).reshape(256, 256, 3)
    assert (squares == squares[:, :1]).all()
    assert len(np.unique(squares[:, 0], axis=0)) <= 16
