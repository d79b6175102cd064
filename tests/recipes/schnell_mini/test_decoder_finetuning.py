import pytest
import torch

from schnell_mini.decoder_finetuning import ground_loss, raise_details, rim_loss

INSIDE, WHOLE = (False, False), (True, True)


def off_at(row: int, column: int) -> torch.Tensor:
    difference = torch.zeros(1, 3, 64, 64)
    difference[..., row, column] = 1.0
    return difference


def test_a_window_inside_the_canvas_has_no_rim() -> None:
    assert rim_loss(torch.ones(1, 3, 32, 32), INSIDE, INSIDE) == 0


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_a_wrong_corner_weighs_most(row: int, column: int) -> None:
    corner, edge, middle = (rim_loss(off_at(*at), WHOLE, WHOLE) for at in ((row, column), (row, 32), (32, 32)))
    assert corner > 5 * edge > 0
    assert middle == 0


def test_a_smudge_near_a_corner_counts() -> None:
    assert rim_loss(off_at(10, -10), WHOLE, WHOLE) > 0
    assert rim_loss(off_at(10, -10), INSIDE, WHOLE) == 0


def test_only_the_ends_that_lie_at_the_edge_count() -> None:
    assert rim_loss(off_at(0, 16), (True, False), INSIDE) > 0
    assert rim_loss(off_at(-1, 16), (True, False), INSIDE) == 0


def test_what_is_wrong_on_a_plain_ground_counts_and_what_is_wrong_in_an_object_does_not() -> None:
    wanted = torch.zeros(1, 3, 64, 64)
    wanted[..., 16:32, 16:32] = torch.rand(1, 3, 16, 16)
    at_object, at_ground = wanted.clone(), wanted.clone()
    at_object[..., 20:24, 20:24] += 0.5
    at_ground[..., 48:52, 48:52] += 0.5
    assert ground_loss(wanted, wanted) == 0
    assert ground_loss(at_object, wanted) == 0
    assert ground_loss(at_ground, wanted) == pytest.approx(0.5 * 16 / 64**2)


def test_raised_details_are_stronger_and_even_areas_as_they_were() -> None:
    torch.manual_seed(0)
    last = torch.nn.Conv2d(4, 3, 3, padding=1)
    even, edge = torch.randn(1, 4, 1, 1).expand(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    edge[:, :, 4, 4] = 1.0  # a single point is nothing but detail
    before = [last(each)[..., 3:6, 3:6] for each in (even, edge)]
    raise_details(last, 0.1)
    after = [last(each)[..., 3:6, 3:6] for each in (even, edge)]
    assert torch.allclose(after[0], before[0], atol=1e-5)
    contrast = [each - each.mean((2, 3), keepdim=True) for each in (before[1], after[1])]
    assert torch.allclose(contrast[1], 1.1 * contrast[0], atol=1e-5)
