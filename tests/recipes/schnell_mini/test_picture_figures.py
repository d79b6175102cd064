import pytest
import torch
from torch.nn import functional

from schnell_mini.picture_figures import aligned_psnr, edge_distance, sharpness


def disc(row: int, column: int) -> torch.Tensor:
    """A red disc on white."""
    rows, columns = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    inside = (rows - row).square() + (columns - column).square() < 60**2
    return torch.where(inside, torch.tensor([0.9, 0.1, 0.1])[:, None, None], torch.ones(3, 1, 1))


def test_a_moved_picture_is_as_near_as_an_unmoved_one() -> None:
    wanted = disc(128, 128)
    assert aligned_psnr(disc(140, 113), wanted) == aligned_psnr(wanted, wanted) == pytest.approx(100)
    assert aligned_psnr(1 - wanted, wanted) < 10


def test_a_blurred_picture_is_less_sharp() -> None:
    wanted = disc(128, 128)
    soft = functional.avg_pool2d(wanted[None], 9, 1, 4, count_include_pad=False)[0]
    assert sharpness(wanted, wanted) == 1
    assert sharpness(soft, wanted) < 0.5


def test_a_smudge_in_a_corner_counts_and_one_in_the_middle_does_not() -> None:
    picture = torch.full((3, 256, 256), 0.5)
    picture[:, 100:120, 100:120] = 1
    assert edge_distance(picture, (0.5, 0.5, 0.5)) == 0
    picture[:, :8, :8] = 1
    assert edge_distance(picture, (0.5, 0.5, 0.5)) > 0.5
