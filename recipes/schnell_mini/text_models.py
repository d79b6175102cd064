"""Both text encoders with their tokenizers: prompts in, what the transformer attends to out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

from schnell.engine.text import PromptEmbedding
from schnell_mini.tokens import token_ids


@dataclass(frozen=True)
class TextModels:
    """The trained text encoders; tokenizers in FLUX's order (CLIP, T5)."""

    clip: CLIPTextModel
    t5: T5EncoderModel
    tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """One embedding a prompt: T5's states `[32, D]` and CLIP's pooled vector `[D]`."""
        clip_ids = token_ids(self.tokenizers[0], prompts).to(self.clip.device)
        t5_ids = token_ids(self.tokenizers[1], prompts).to(self.t5.device)
        return as_embeddings(self.t5(input_ids=t5_ids)[0], self.clip(input_ids=clip_ids).pooler_output)


def as_embeddings(states: Tensor, pooled: Tensor) -> list[PromptEmbedding]:
    """States `[B, L, D]` and pooled vectors `[B, D]` as one embedding a prompt."""
    return [PromptEmbedding(one, vector, was_truncated=False) for one, vector in zip(states, pooled, strict=True)]
