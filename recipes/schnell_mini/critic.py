"""A critic that tells true pictures from decoded ones, and how much its word weighs.

Losses of pixels alone are least where an edge that may lie here or there is drawn as its mean: soft. A critic knows
that no true picture looks so.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Most that the critic's gradient is raised to reach that of the pixels' loss.
MOST_WEIGHT = 5.0
#: Pixels of a patch's side, and the least edge in one that is no plain ground.
SQUARE, LEAST_EDGE = 8, 0.02
#: What its features count for beside its verdict (feature matching, Wang et al. 2018, arXiv:1711.11585).
FEATURE_WEIGHT = 2.0


class Critic(nn.Module):
    """Judges patches (PatchGAN, Isola et al. 2017, arXiv:1611.07004)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.verdict = nn.Conv2d(widths[-1], 1, 3, 1, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores `[B, 1, H/8, W/8]`, higher for truer patches, and the features of every layer."""
        features: list[Tensor] = []
        for layer in self.layers:
            pictures = functional.leaky_relu(layer(pictures), 0.2)
            features.append(pictures)
        scores: Tensor = self.verdict(pictures)
        return scores, features


def edge_strength(pictures: Tensor) -> Tensor:
    """How much edge each square of 8 pixels has `[B, 1, H/8, W/8]`: the root of its mean squared gradient."""
    across = functional.pad(pictures[..., 1:] - pictures[..., :-1], (0, 1))
    down = functional.pad(pictures[..., 1:, :] - pictures[..., :-1, :], (0, 0, 0, 1))
    energy = functional.avg_pool2d((across.square() + down.square()).sum(1, keepdim=True), SQUARE)
    return (energy + 1e-5).sqrt()


@torch.no_grad()
def judged_patches(made: Tensor, wanted: Tensor) -> Tensor:
    """Weights of patches `[B, 1, H/8, W/8]`, 1 in all: plain grounds are alike, and would drown what can be told."""
    shown = torch.maximum(edge_strength(made), edge_strength(wanted)) > LEAST_EDGE
    return shown / (shown.sum() + 1)


def critic_loss(critic: Critic, made: Tensor, wanted: Tensor) -> Tensor:
    """The hinge loss that the critic itself learns by."""
    weights, true, drawn = judged_patches(made, wanted), critic(wanted)[0], critic(made.detach())[0]
    return (weights * (functional.relu(1 - true) + functional.relu(1 + drawn))).sum()


def criticism(critic: Critic, made: Tensor, wanted: Tensor) -> Tensor:
    """What a decoder hears of the critic: its verdict, and how far features are from the true picture's."""
    scores, features = critic(made)
    with torch.no_grad():
        true = critic(wanted)[1]
    apart = torch.stack([(one - other).abs().mean() for one, other in zip(features, true, strict=True)])
    critique: Tensor = FEATURE_WEIGHT * apart.sum() - (judged_patches(made, wanted) * scores).sum()
    return critique


def balance_weight(pixels: Tensor, critique: Tensor, last: Tensor) -> float:
    """The weight at which both losses pull equally at the last layer (Esser et al. 2021, arXiv:2012.09841)."""
    pull, other = (torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (pixels, critique))
    return float((pull / (other + 1e-6)).clamp(0, MOST_WEIGHT))
