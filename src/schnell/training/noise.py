"""The noise levels that a LoRA is trained at, and the rectified-flow loss there."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from schnell.engine.denoise import Drawing, predict_velocity
from schnell.engine.flux import VelocityNetwork
from schnell.engine.text import PromptEmbedding
from schnell.spec import Size

#: The levels that four steps visit, each with its share of the samples. What is left lies anywhere above the last one:
#: no sampling of one to four steps goes below, and errors of the velocity there would outweigh all others.
STEP_SHARES: Final = {1.0: 0.35, 0.75: 0.2, 0.5: 0.15, 0.25: 0.1}


def draw_noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """Random noise levels, float32 (count): four in five are 1, 3/4, 1/2 or 1/4.

    The others are logit-normal from 1/4 to 1 (Esser et al., arXiv:2403.03206).
    """
    lowest = min(STEP_SHARES)
    anywhere = lowest + (1 - lowest) * torch.sigmoid(torch.randn(count, generator=generator))
    shares = torch.tensor([*STEP_SHARES.values(), 1 - sum(STEP_SHARES.values())])
    kinds = torch.multinomial(shares, count, replacement=True, generator=generator)
    levels = torch.tensor([*STEP_SHARES, 0.0])[kinds]
    return torch.where(kinds == len(STEP_SHARES), anywhere, levels)


def flow_loss(
    transformer: VelocityNetwork,
    clean: Tensor,
    prompts: Sequence[PromptEmbedding],
    grid: Size,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the predicted velocity, for clean latents (batch, tokens, channels) at random noise levels.

    The path from picture (0) to noise (1) is a straight line and the network predicts its direction, noise minus
    picture, as FLUX was trained (Liu et al., arXiv:2209.03003).
    """
    device = clean.device
    noise = torch.randn(clean.shape, generator=generator).to(device)
    levels = draw_noise_levels(len(clean), generator)
    mixed = torch.lerp(clean, noise, levels.to(device)[:, None, None])
    drawings = [
        Drawing(latents=latents, sigmas=(level, 0.0), step=0, grid=grid, prompt=prompt)
        for latents, level, prompt in zip(mixed, levels.tolist(), prompts, strict=True)
    ]
    return F.mse_loss(predict_velocity(transformer, drawings), noise - clean)
