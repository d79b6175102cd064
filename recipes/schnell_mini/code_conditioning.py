"""What the transformer is told while it learns to draw: an icon's codes themselves, without any text.

So pictures and text are learned apart from each other, at the same time if need be. The codes are a little off, as
those read from a text will be.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from schnell_mini import layout
from schnell_mini.appearance_codes import Looks, Palette
from schnell_mini.text_models import Conditions

ROUNDS = 6
LEAST = 0.05
NOISE = 0.25


@dataclass(frozen=True)
class Known:
    """The codes that captions stand for."""

    looks: Looks
    palette: Palette

    def to(self, device: torch.device) -> "Known":
        """The same on a device."""
        looks = Looks(self.looks.codes.to(device), self.looks.strengths.to(device))
        return Known(looks, Palette(self.palette.codes.to(device), self.palette.patterns.to(device)))


@dataclass(frozen=True)
class Teller:
    """Codes of icons and backgrounds, and what T5 says about some texts `[M, L, D]`, none of which matters."""

    known: Known
    tokens: Tensor

    def tell(self, rng: Random, icons: Tensor, colours: Tensor) -> Conditions:
        """Conditions for icons on backgrounds; some of the codes are off by up to `NOISE`."""
        device = self.tokens.device
        codes = torch.cat([self.known.looks.codes[icons.to(device)], self.known.palette.codes[colours.to(device)]], 1)
        off = NOISE * torch.rand(len(codes), 1, device=device).square() * torch.randn_like(codes)
        texts = torch.tensor([rng.randrange(len(self.tokens)) for _ in range(len(codes))])
        return Conditions(self.tokens[texts.to(device)], codes + off)


class CodesAsTold(nn.Module):
    """Stands where FLUX embeds pooled text: codes `[B, 187]` to the embedding that means them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, codes: Tensor) -> Tensor:
        """Solve SiLU(x) = offset + spread * code by a few rounds of fixed-point iteration."""
        wanted = (layout.LOOK_OFFSET + layout.LOOK_SPREAD * codes.float()).clamp_min(LEAST)
        found = wanted
        for _ in range(ROUNDS):
            found = wanted * (1 + torch.exp(-found))
        return nn.functional.pad(found, (0, self.width - found.shape[1])).to(codes.dtype)


@contextmanager
def told_by_codes(transformer: FluxTransformer2DModel) -> Iterator[None]:
    """Within, the transformer takes codes where it takes CLIP's pooled text otherwise."""
    place = transformer.time_text_embed
    embedder = place.text_embedder
    place.text_embedder = CodesAsTold(transformer.x_embedder.out_features)
    try:
        yield
    finally:
        place.text_embedder = embedder
