"""What a training step needs, whatever it learns from: plain flow matching, or pictures paired with noise."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from schnell.engine.flux import Flux
from schnell.engine.text import PromptEmbedding
from schnell.spec import Size
from schnell.training.low_rank import LowRankLayers


@dataclass(frozen=True, slots=True)
class Student:
    """The transformer with its factors under training, and the generator of everything random about the training."""

    transformer: Flux
    layers: LowRankLayers
    generator: torch.Generator
    device: torch.device


class Lessons(Protocol):
    """All examples of one training: `examples.TrainingData` or `pairs.PairedData`."""

    @property
    def prompts(self) -> tuple[PromptEmbedding, ...]:
        """The captions' embeddings, on the CPU."""

    @property
    def smallest_grid(self) -> Size:
        """The smallest token grid that is trained."""

    def renew(self, student: Student, spent: float) -> None:
        """Before a step: make anew what depends on what was learned. `spent` is the part of the budget used, 0 to 1."""

    def loss(self, student: Student, batch_size: int) -> Tensor:
        """The loss of one random batch; `batch_size` counts pictures of the smallest grid."""
