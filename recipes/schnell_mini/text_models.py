"""What the transformer is told and what it answers: rectified flow's velocity (Liu et al. 2022, arXiv:2209.03003)."""

from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

from schnell_mini.tokens import token_ids


@dataclass(frozen=True)
class Conditions:
    """What the transformer is told: T5's tokens `[B, 32, D]` and CLIP's pooled vector `[B, D]`."""

    tokens: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class TextModels:
    """The finished text side; tokenizers in FLUX's order (CLIP, T5)."""

    clip: CLIPTextModel
    t5: T5EncoderModel
    tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Conditions:
        """Read prompts with both encoders."""
        clip_ids = token_ids(self.tokenizers[0], texts).to(self.clip.device)
        t5_ids = token_ids(self.tokenizers[1], texts).to(self.t5.device)
        return Conditions(self.t5(input_ids=t5_ids)[0], self.clip(input_ids=clip_ids).pooler_output)


def grid_positions(height: int, width: int) -> Tensor:
    """FLUX's image ids `[height/2 * width/2, 3]` for a canvas in latents."""
    rows, columns = height // 2, width // 2
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)[None]
    return ids.reshape(-1, 3)


def velocity(
    transformer: FluxTransformer2DModel, tokens: Tensor, told: Conditions, times: Tensor, positions: Tensor
) -> Tensor:
    """The transformer's answer for noisy tokens at their own times."""
    out = transformer(
        hidden_states=tokens,
        encoder_hidden_states=told.tokens,
        pooled_projections=told.pooled,
        timestep=times,
        img_ids=positions,
        txt_ids=torch.zeros(told.tokens.shape[1], 3, device=tokens.device),
        return_dict=False,
    )[0]
    return out if isinstance(out, Tensor) else torch.as_tensor(out)
