from dataclasses import replace
from random import Random

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from schnell.models.folder import embedded_home, open_model_folder
from schnell.training.low_rank import place_model
from schnell_mini.captions import IconLabel
from schnell_mini.drawn_pictures import (
    DrawnPicture,
    Studio,
    collect_pictures,
    draw_canvas,
    encode_canvas,
    encode_patterned,
    paste,
    possible_placements,
)
from schnell_mini.learned.looks import LOOKS
from schnell_mini.lora_canvases import choose_pictures
from schnell_mini.pictures import Icons, render_icons
from schnell_mini.placement import Grid
from schnell_mini.sampling import decode

SQUARE, SMALL, WIDE = Grid(16, 16), Grid(8, 8), Grid(12, 21)
[LINE] = [look for look in LOOKS if look.name == "line"]


def red_circle() -> Icons:
    """Of the size and the red that the model draws it in."""
    steps = torch.arange(256) - 127.5
    disc = (steps[:, None].square() + steps.square()) < 110**2
    pictures = disc * torch.tensor([220, 55, 85, 255], dtype=torch.uint8)[:, None, None]
    return Icons(pictures[None], (IconLabel("red circle", ()),))


@pytest.fixture(scope="module")
def studio() -> Studio:
    home = embedded_home()
    vae = AutoencoderKL.from_pretrained(home / "schnell-mini/vae").float().eval()
    base = place_model(open_model_folder(home / "schnell-mini"), torch.device("cpu"))
    return Studio(base, vae, red_circle(), home / "loras")


def middle_of(picture: Tensor) -> tuple[float, float]:
    """Row and column of the middle of all pixels that are no ground."""
    shown = (picture.float() - picture[:, :1, :1].float()).abs().sum(0) > 60
    rows, columns = shown.nonzero().float().mean(0).tolist()
    return rows, columns


@pytest.mark.parametrize("grid", [SQUARE, SMALL, WIDE], ids=["1 MP", "0.25 MP", "16:9"])
def test_an_icon_is_pasted_where_it_is_trained_to_be_and_as_crisp(grid: Grid) -> None:
    icon = red_circle().pictures
    pasted = paste(icon, grid, torch.tensor([16 * grid.side * 0.8125, 0.0, 0.0, 0.0]))
    assert pasted.shape == (1, 4, 16 * grid.height, 16 * grid.width)
    if grid is SQUARE:
        painted = pasted[:, :3] + 1 - pasted[:, 3:]
        assert torch.allclose(2 * painted - 1, render_icons(icon, torch.ones(1, 3), 208, 256), atol=1e-5)


def test_what_leaves_the_canvas_is_cut_off() -> None:
    icon = red_circle().pictures
    moved = paste(icon, SMALL, torch.tensor([104.0, 0.0, 64.0, 0.0]))
    assert moved[..., :60].sum() == 0
    assert moved[..., 70:].sum() > 0


def test_drawn_latents_come_with_the_picture_of_where_they_were_drawn(studio: Studio) -> None:
    painter = studio.painter(LOOKS[0], Random(1))
    canvas = choose_pictures(painter, SQUARE, 4)
    drawn = draw_canvas(painter, canvas, 4)
    assert drawn
    for each in drawn:
        [seen] = decode(studio.vae, each.latents[None].float())
        apart = torch.tensor(middle_of(each.picture)) - torch.tensor(middle_of(255 * seen))
        assert apart.abs().max() < 6  # a placement moves by 16 pixels
    assert len(possible_placements(canvas, 4)) == 4
    assert possible_placements(canvas, 1) == [canvas.placements]


def test_pictures_in_another_place_than_drawn_are_left_out(studio: Studio) -> None:
    painter = studio.painter(LOOKS[0], Random(1))
    canvas = choose_pictures(painter, SMALL, 4)
    elsewhere = replace(canvas, placements=canvas.placements + torch.tensor([0.0, 0.0, 60.0, 0.0]))
    assert draw_canvas(painter, elsewhere, 1) == []
    assert len(draw_canvas(painter, canvas, 1)) == 4


def test_encoded_pictures_are_painted_in_their_look(studio: Studio) -> None:
    painter = studio.painter(LINE, Random(2))
    canvas = choose_pictures(painter, WIDE, 2)
    for each in encode_canvas(painter, canvas):
        assert each.latents.shape == (16, 24, 42)
        assert each.picture.shape == (3, 192, 336)
        rows, columns = middle_of(each.picture)
        assert abs(rows - 96) < 20
        assert abs(columns - 168) < 20


def test_patterns_lie_over_the_icon_and_the_edge_and_are_what_the_latents_hold(studio: Studio) -> None:
    made = encode_patterned(studio, 6, Random(0))
    assert len(made) == 6
    rims = [each.picture[:, :, 0].float().std(1).max() for each in made]
    assert sum(float(rim) > 10 for rim in rims) >= 3
    for each in made:
        [seen] = decode(studio.vae, each.latents[None].float())
        assert float((255 * seen - each.picture).abs().mean()) < 40


def test_all_sources_give_pictures(studio: Studio) -> None:
    pictures = collect_pictures(studio, 0.001, lambda *_: None)
    assert len(pictures) >= len(LOOKS)
    assert all(isinstance(each, DrawnPicture) for each in pictures)
    assert all(each.picture.shape[1] == 8 * each.latents.shape[1] for each in pictures)
