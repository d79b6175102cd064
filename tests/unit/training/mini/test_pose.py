import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schnell.training.mini.pose import SIDES, Grid, first_corner, move, place_codes, read_shifts

DIRECTIONS = torch.eye(64)[:, :2]


@given(height=st.integers(4, 23), width=st.integers(4, 23), down=st.integers(0, 1), right=st.integers(0, 1))
def test_every_token_of_every_canvas_has_one_row_one_column_and_one_view(
    height: int, width: int, down: int, right: int
) -> None:
    grid = Grid(height, width)
    codes = place_codes(grid, torch.tensor([[down, right]]))
    assert codes.shape == (1, grid.tokens, 36)
    for part in (codes[..., :16], codes[..., 16:32], codes[..., 32:]):
        assert torch.equal(part.sum(-1), torch.ones(1, grid.tokens))
    assert codes[..., 32 + SIDES.index(grid.side)].all()


def test_a_moved_view_has_its_first_row_one_token_further_down() -> None:
    rows = place_codes(Grid(16, 16), torch.tensor([[1, 0]]))[0, ::16, :16].argmax(-1)
    assert rows.tolist() == [0, *range(15)]


@pytest.mark.parametrize(("side", "places"), [(16, 4), (12, 4), (8, 1), (6, 1)])
def test_noise_chooses_among_four_places_where_there_is_room(side: int, places: int) -> None:
    noise = torch.randn(64, side * side, 64, generator=torch.Generator().manual_seed(0))
    shifts = read_shifts(noise, DIRECTIONS, Grid(side, side)).tolist()
    assert len({tuple(shift) for shift in shifts}) == places


def test_the_places_of_a_view_are_sixteen_pixels_apart() -> None:
    view = torch.randn(1, 16, 32, 32)
    at = [move(view, Grid(16, 16), torch.tensor([shift])) for shift in ([0, 0], [1, 1])]
    assert torch.equal(at[0][..., 3:-7, 3:-7], at[1][..., 5:-5, 5:-5])


def test_a_view_that_is_not_moved_lies_at_its_first_corner() -> None:
    view = torch.randn(2, 16, 32, 32)
    assert torch.equal(first_corner(view, 16), move(view, Grid(16, 16), torch.zeros(2, 2, dtype=torch.long)))


def test_a_view_lies_in_the_middle_of_a_wide_canvas() -> None:
    view = torch.randn(1, 16, 24, 24)
    placed = move(view, Grid(12, 20), torch.tensor([[0, 0]]))
    assert placed.shape == (1, 16, 24, 40)
    assert torch.equal(placed[..., 2:-6, 11:27], view[..., 3:-5, 4:20])
