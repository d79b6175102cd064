"""Conditioning on an icon's codes instead of on a text, while the drawing blocks and the decoder are trained.

So pictures and text are learned apart from each other, at the same time if need be. The codes are disturbed a little,
because those that CLIP reads from a text are not exact either.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from schnell.engine.text import PromptEmbedding
from schnell_mini import layout
from schnell_mini.appearance_codes import AppearanceCodes, BackgroundCodes
from schnell_mini.text_models import as_embeddings

ITERATIONS = 6
SMALLEST = 0.05
CODE_JITTER = 0.25


@dataclass(frozen=True)
class Codebook:
    """The codes of every icon and every background colour."""

    appearance: AppearanceCodes
    background: BackgroundCodes

    def to(self, device: torch.device) -> "Codebook":
        """The same on a device."""
        appearance = AppearanceCodes(self.appearance.codes.to(device), self.appearance.strengths.to(device))
        background = BackgroundCodes(self.background.codes.to(device), self.background.patterns.to(device))
        return Codebook(appearance, background)


@dataclass(frozen=True)
class CodeConditioner:
    """Makes prompt embeddings from codes; `states` are T5's for some texts `[M, L, D]`, whose content has no effect."""

    codebook: Codebook
    states: Tensor

    def condition(self, rng: Random, icons: Tensor, colours: Tensor) -> list[PromptEmbedding]:
        """Embeddings for icons `[B]` on backgrounds `[B]`, with disturbed codes `[187]` in place of CLIP's vector.

        Within `conditioned_by_codes` alone. The disturbance has a random standard deviation of at most `CODE_JITTER`.
        """
        device, book = self.states.device, self.codebook
        codes = torch.cat([book.appearance.codes[icons.to(device)], book.background.codes[colours.to(device)]], 1)
        jitter = CODE_JITTER * torch.rand(len(codes), 1, device=device).square() * torch.randn_like(codes)
        texts = torch.tensor([rng.randrange(len(self.states)) for _ in range(len(codes))])
        return as_embeddings(self.states[texts.to(device)], codes + jitter)


class CodeEmbedder(nn.Module):
    """Takes the place of FLUX's embedder of pooled text: codes `[B, 187]` to the embedding that holds them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, codes: Tensor) -> Tensor:
        """Solve SiLU(x) = CODE_OFFSET + CODE_SPREAD * code for x by fixed-point iteration; zeros behind, to `width`."""
        wanted = (layout.CODE_OFFSET + layout.CODE_SPREAD * codes.float()).clamp_min(SMALLEST)
        found = wanted
        for _ in range(ITERATIONS):
            found = wanted * (1 + torch.exp(-found))
        return nn.functional.pad(found, (0, self.width - found.shape[1])).to(codes.dtype)


@contextmanager
def conditioned_by_codes(transformer: FluxTransformer2DModel) -> Iterator[None]:
    """Within, the transformer takes codes where it otherwise takes CLIP's pooled vector."""
    embedding = transformer.time_text_embed
    embedder = embedding.text_embedder
    embedding.text_embedder = CodeEmbedder(transformer.x_embedder.out_features)
    try:
        yield
    finally:
        embedding.text_embedder = embedder
