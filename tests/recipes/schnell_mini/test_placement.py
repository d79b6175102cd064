import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schnell_mini.placement import Grid, find_places, first_corner, move, settle

DIRECTIONS = torch.eye(64)[:, :2]


@given(height=st.integers(4, 24), width=st.integers(4, 24), down=st.integers(0, 1), right=st.integers(0, 1))
def test_every_place_of_the_view_has_one_token_unless_the_canvas_cuts_it_off(
    height: int, width: int, down: int, right: int
) -> None:
    grid = Grid(height, width)
    places, inside = find_places(grid, torch.tensor([[down, right]]))
    seen = places[inside].tolist()
    assert len(set(seen)) == len(seen)
    assert len(seen) >= (min(grid.side, height) - down) * (min(grid.side, width) - right)
    assert 0 <= int(places.min()) <= int(places.max()) < grid.side**2


def test_a_moved_view_has_its_first_row_one_token_further_down() -> None:
    places, inside = find_places(Grid(16, 16), torch.tensor([[1, 0]]))
    assert (places[0, ::16] // 16).tolist() == [0, *range(15)]
    assert inside[0, ::16].tolist() == [False, *[True] * 15]


@pytest.mark.parametrize("shift", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_settled_noise_points_where_it_should_and_is_noise_still(shift: tuple[int, int]) -> None:
    noise = torch.randn(8, 256, 64, generator=torch.Generator().manual_seed(0))
    settled = settle(noise, DIRECTIONS, torch.tensor([shift] * 8))
    means = settled.mean(1) @ DIRECTIONS
    assert ((means > 0).long() == torch.tensor(shift)).all()
    assert torch.allclose(means.abs(), (noise.mean(1) @ DIRECTIONS).abs(), atol=1e-6)
    assert torch.equal(settled[..., 2:], noise[..., 2:])


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
