import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schnell_mini.placement import Grid, align_noise, find_view_positions, place_unmoved, place_views

DIRECTIONS = torch.eye(64)[:, :2]


@given(height=st.integers(4, 24), width=st.integers(4, 24), down=st.integers(0, 1), right=st.integers(0, 1))
def test_every_position_of_the_view_has_one_token_unless_the_canvas_cuts_it_off(
    height: int, width: int, down: int, right: int
) -> None:
    grid = Grid(height, width)
    positions, inside = find_view_positions(grid, torch.tensor([[down, right]]))
    seen = positions[inside].tolist()
    assert len(set(seen)) == len(seen)
    assert len(seen) >= (min(grid.side, height) - down) * (min(grid.side, width) - right)
    assert 0 <= int(positions.min()) <= int(positions.max()) < grid.side**2


def test_a_moved_view_has_its_first_row_one_token_further_down() -> None:
    positions, inside = find_view_positions(Grid(16, 16), torch.tensor([[1, 0]]))
    assert (positions[0, ::16] // 16).tolist() == [0, *range(15)]
    assert inside[0, ::16].tolist() == [False, *[True] * 15]


@pytest.mark.parametrize("shift", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_aligned_noise_stands_for_its_shift_and_keeps_the_size_of_its_means(shift: tuple[int, int]) -> None:
    noise = torch.randn(8, 256, 64, generator=torch.Generator().manual_seed(0))
    aligned = align_noise(noise, DIRECTIONS, torch.tensor([shift] * 8))
    means = aligned.mean(1) @ DIRECTIONS
    assert ((means > 0).long() == torch.tensor(shift)).all()
    assert torch.allclose(means.abs(), (noise.mean(1) @ DIRECTIONS).abs(), atol=1e-6)
    assert torch.equal(aligned[..., 2:], noise[..., 2:])


def test_the_placements_of_a_view_are_sixteen_pixels_apart() -> None:
    view = torch.randn(1, 16, 32, 32)
    at = [place_views(view, Grid(16, 16), torch.tensor([shift])) for shift in ([0, 0], [1, 1])]
    assert torch.equal(at[0][..., 3:-7, 3:-7], at[1][..., 5:-5, 5:-5])


def test_a_view_that_is_not_moved_lies_at_its_first_corner() -> None:
    view = torch.randn(2, 16, 32, 32)
    assert torch.equal(place_unmoved(view, 16), place_views(view, Grid(16, 16), torch.zeros(2, 2, dtype=torch.long)))


def test_a_view_lies_in_the_middle_of_a_wide_canvas() -> None:
    view = torch.randn(1, 16, 24, 24)
    placed = place_views(view, Grid(12, 20), torch.tensor([[0, 0]]))
    assert placed.shape == (1, 16, 24, 40)
    assert torch.equal(placed[..., 2:-6, 11:27], view[..., 3:-5, 4:20])
