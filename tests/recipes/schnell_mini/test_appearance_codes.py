import torch

from schnell_mini.appearance_codes import Palette, background, measure_codes
from schnell_mini.latents import Encoded
from schnell_mini.layout import LOOKS
from schnell_mini.pictures import Pose


def view_of(count: int) -> Encoded:
    latents = torch.randn(count, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    return Encoded(latents, torch.zeros(count, dtype=torch.long), 256, Pose(208))


def test_codes_are_uncorrelated_and_the_same_each_time() -> None:
    looks = measure_codes(view_of(12))
    again = measure_codes(view_of(12))
    assert torch.equal(looks.codes, again.codes)
    assert looks.codes.shape == (12, LOOKS)
    products = looks.codes.T @ looks.codes / 12
    assert torch.allclose(products[:11, :11], torch.eye(11), atol=1e-4)


def test_strengths_fall() -> None:
    strengths = measure_codes(view_of(12)).strengths[:11]
    assert bool((strengths.diff() <= 0).all())


def test_background_shows_where_nothing_covers_it() -> None:
    palette = Palette(torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(3, 16))
    shown = background(palette, torch.tensor([0]), torch.tensor([[[1.0, 0.0, 0.5, 0.0]]]))
    assert shown.view(16, 4)[0].tolist() == [1.0, 0.0, 0.5, 0.0]
