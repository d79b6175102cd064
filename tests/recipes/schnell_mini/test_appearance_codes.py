import torch

from schnell_mini.appearance_codes import BackgroundCodes, background_tokens, measure_appearance
from schnell_mini.latents import Encoded
from schnell_mini.layout import APPEARANCE_CODES


def view_of(count: int) -> Encoded:
    latents = torch.randn(count, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    return Encoded(latents, torch.zeros(count, dtype=torch.long))


def test_codes_are_uncorrelated_and_the_same_each_time() -> None:
    first = measure_appearance(view_of(12))
    again = measure_appearance(view_of(12))
    assert torch.equal(first.codes, again.codes)
    assert first.codes.shape == (12, APPEARANCE_CODES)
    products = first.codes.T @ first.codes / 12
    assert torch.allclose(products[:11, :11], torch.eye(11), atol=1e-4)


def test_strengths_fall() -> None:
    strengths = measure_appearance(view_of(12)).strengths[:11]
    assert bool((strengths.diff() <= 0).all())


def test_background_shows_where_nothing_covers_it() -> None:
    white = BackgroundCodes(torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(3, 16))
    shown = background_tokens(white, torch.tensor([0]), torch.tensor([[[1.0, 0.0, 0.5, 0.0]]]))
    assert shown.view(16, 4)[0].tolist() == [1.0, 0.0, 0.5, 0.0]
