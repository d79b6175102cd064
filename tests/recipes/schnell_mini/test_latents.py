import pytest
import torch

from schnell_mini.latents import place_on_canvas


def test_placing_on_the_same_canvas_changes_nothing() -> None:
    latents = torch.randn(1, 16, 12, 12)
    assert torch.equal(place_on_canvas(latents, 12, 12), latents)


@pytest.mark.parametrize(("height", "width"), [(12, 22), (22, 12), (14, 18)])
def test_placing_on_a_wide_canvas_keeps_the_object_in_the_middle(height: int, width: int) -> None:
    latents = torch.zeros(1, 1, 12, 12)
    latents[..., 3:-3, 3:-3] = 1
    out = place_on_canvas(latents, height, width)
    assert out.shape == (1, 1, height, width)
    assert float(out.sum()) == 36
    top, left = (height - 12) // 2 + 3, (width - 12) // 2 + 3
    assert bool((out[..., top : top + 6, left : left + 6] == 1).all())
