"""What to train, for how long, and how far it is."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from schnell.errors import TrainingOptionError
from schnell.spec import MEGAPIXELS

WARM_UP_STEPS = 10
_FINAL_RATE = 0.03


@dataclass(frozen=True, slots=True)
class Budget:
    """When training is done: after `minutes`, or after exactly `steps` if they are given."""

    minutes: float = 10.0
    steps: int | None = None

    def spent(self, step: int, seconds: float) -> float:
        """The part of the budget that is used up, 0 to 1."""
        part = step / max(1, self.steps) if self.steps is not None else seconds / max(1e-9, 60 * self.minutes)
        return min(1.0, part)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How one LoRA is trained.

    `megapixels` are the areas that pictures are asked for at (`0.25`, `1`; the model's `draw_scale` divides their
    sides), each with its share of the steps. `batch_size` counts pictures of the smallest size trained.
    `learning_rate` None means 0.5 / width of the transformer: 1.6e-4 for FLUX.1's 3072. `checkpointing` saves memory by
    computing activations twice.
    """

    trigger: str
    rank: int = 16
    budget: Budget = Budget()
    megapixels: tuple[tuple[str, float], ...] = (("0.25", 0.75), ("1", 0.25))
    batch_size: int = 4
    learning_rate: float | None = None
    seed: int = 0
    checkpointing: bool = False

    def rate_for(self, width: int) -> float:
        """The highest learning rate for a transformer of this width."""
        return 0.5 / width if self.learning_rate is None else self.learning_rate


def rate_factor(step: int, spent: float) -> float:
    """The factor on the highest learning rate after `step` steps and a part `spent` of the budget.

    A linear warm-up over ten steps, times half a cosine from 1 down to 3%.
    """
    cosine = 0.5 * (1 + math.cos(math.pi * spent))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """How far a training is: its stage, the part of that stage that is done (0 to 1), and a message about it."""

    stage: str
    done: float
    message: str = ""


ProgressReport = Callable[[TrainingProgress], None]


def divide_steps(areas: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    """Each area with its share of the steps: three quarters for the first where there are two.

    Raises:
        TrainingOptionError: an area is not 0.25 or 1, or is named twice.
    """
    if not areas or len(set(areas)) != len(areas) or not set(areas) <= set(MEGAPIXELS):
        raise TrainingOptionError(f"--megapixels must be {' or '.join(MEGAPIXELS)}, each at most once")
    return ((areas[0], 1.0),) if len(areas) == 1 else ((areas[0], 0.75), (areas[1], 0.25))
