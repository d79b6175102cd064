from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from schnell_mini.pictures import composite, draw_evenly, hex_key, load_icon, premultiply, render_icons, resize


def red_disc(hidden: int) -> Image.Image:
    """A red disc whose transparent surroundings hide the grey level `hidden`."""
    y, x = np.mgrid[:64, :64]
    inside = (x - 32) ** 2 + (y - 32) ** 2 < 24**2
    pixels = np.full((64, 64, 4), hidden, np.uint8)
    pixels[..., 3] = 0
    pixels[inside] = (255, 0, 0, 255)
    return Image.fromarray(pixels)


def as_batch(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(premultiply(picture)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("size", [24, 50, 96])
def test_premultiplied_resize_leaves_no_fringe_of_the_hidden_colour(size: int) -> None:
    white, black = (resize(as_batch(red_disc(level)), size) for level in (255, 0))
    assert torch.equal(white, black)
    on_red = composite(white, torch.tensor([[1.0, 0.0, 0.0]]), size, size)
    assert float((on_red[0, 0] - 1).abs().max()) < 0.01
    assert float(on_red[0, 1:].max()) < 0.01


def test_resize_keeps_colour_below_alpha() -> None:
    out = resize(as_batch(red_disc(255)), 40)
    assert bool((out[:, :3] <= out[:, 3:] + 1e-6).all())


def test_load_icon_brings_any_size_to_256(tmp_path: Path) -> None:
    red_disc(255).resize((100, 80)).save(tmp_path / "icon.webp", lossless=True)
    assert load_icon(tmp_path / "icon.webp").shape == (4, 256, 256)


def test_a_rendered_icon_lies_in_the_middle_of_its_colour() -> None:
    icon = torch.zeros(1, 4, 256, 256, dtype=torch.uint8)
    icon[:, 0] = icon[:, 3] = 255
    out = render_icons(icon, torch.tensor([[0.0, 0.0, 1.0]]), 64, 128)
    assert out[0, :, 0, 0].tolist() == [-1.0, -1.0, 1.0]
    assert out[0, :, 64, 64].tolist() == pytest.approx([1.0, -1.0, -1.0], abs=1e-4)
    assert float((out[0, 0] > 0).sum()) == 64 * 64


def test_names_with_and_without_variation_selector_meet() -> None:
    assert hex_key("2764-FE0F") == hex_key("2764") == "2764"


def test_no_icon_comes_twice_before_all_have_come() -> None:
    chosen = draw_evenly(Random(1), 5, 13)
    assert len(chosen) == 13
    assert sorted(chosen[:5]) == sorted(chosen[5:10]) == [0, 1, 2, 3, 4]
    assert len(set(chosen[10:])) == 3
