from random import Random

import pytest
import torch

from schnell_mini.patterns import FIELDS, KEPT, cover, random_colour

WHITE = torch.ones(3, 96, 128)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: str(field.__name__))
def test_a_field_varies_all_over_the_canvas_and_with_each_draw(field: type) -> None:
    rng = Random(3)
    first, second = field(rng, 96, 128), field(rng, 96, 128)
    assert first.shape == (96, 128)
    assert not torch.equal(first, second)
    quarters = [part for half in first.chunk(2, 0) for part in half.chunk(2, 1)]
    assert all(float(part.std()) > 0.1 for part in quarters)


def test_covered_pictures_stay_pictures_of_which_a_part_is_as_it_was() -> None:
    rng = Random(0)
    for _ in range(40):
        covered = cover(WHITE, rng)
        assert covered.shape == WHITE.shape
        assert covered.min() >= 0
        assert covered.max() <= 1
    kept = [float((cover(WHITE, rng) == WHITE).all(0).float().mean()) for _ in range(80)]
    # the others are negatives, gradients, and white on white
    assert sum(KEPT[0] - 0.05 < share < KEPT[1] + 0.05 for share in kept) > 40


def test_patterns_reach_the_edge() -> None:
    rims = [torch.cat([made[:, 0], made[:, -1]], 1) for made in (cover(WHITE, Random(seed)) for seed in range(40))]
    assert sum(float(rim.std(1).max()) > 0.05 for rim in rims) > 25


def test_one_seed_gives_one_picture() -> None:
    assert torch.equal(cover(WHITE, Random(5)), cover(WHITE, Random(5)))
    assert not torch.equal(cover(WHITE, Random(5)), cover(WHITE, Random(6)))


def test_colours_are_often_black_or_white() -> None:
    colours = [random_colour(Random(seed)) for seed in range(200)]
    grey = sum(float(colour.std()) == 0 for colour in colours)
    assert 30 < grey < 100
