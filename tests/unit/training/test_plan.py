import pytest
import torch

from schnell.errors import TrainingError
from schnell.training.noise import STEP_SHARES, draw_noise_levels
from schnell.training.plan import Budget, TrainingPlan, divide_steps, rate_factor


def test_a_budget_of_steps_ignores_time() -> None:
    assert Budget(minutes=0.001, steps=10).spent(5, 1e6) == pytest.approx(0.5)


def test_a_budget_of_minutes_ignores_steps_and_ends_at_one() -> None:
    budget = Budget(minutes=2)
    assert budget.spent(10**6, 60) == pytest.approx(0.5)
    assert budget.spent(0, 500) == 1.0


def test_the_learning_rate_follows_the_width_unless_it_is_given() -> None:
    assert TrainingPlan("neon").rate_for(3072) == pytest.approx(1.63e-4, rel=0.01)
    assert TrainingPlan("neon", learning_rate=0.01).rate_for(3072) == 0.01


def test_the_rate_warms_up_and_then_only_falls() -> None:
    factors = [rate_factor(step, step / 200) for step in range(201)]
    top = factors.index(max(factors))
    assert factors[0] == pytest.approx(0.1, rel=0.01)
    assert top < 15
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert factors[-1] == pytest.approx(0.03)


def test_areas_share_the_steps() -> None:
    assert divide_steps(("1",)) == (("1", 1.0),)
    assert sum(share for _, share in divide_steps(("0.25", "1"))) == 1.0


@pytest.mark.parametrize("areas", [(), ("2",), ("1", "1"), ("0.25", "1", "4")])
def test_unknown_areas_are_refused(areas: tuple[str, ...]) -> None:
    with pytest.raises(TrainingError, match="--megapixels must be"):
        divide_steps(areas)


def test_most_noise_levels_are_those_of_four_steps() -> None:
    levels = draw_noise_levels(20_000, torch.Generator().manual_seed(0))
    assert levels.min() > 0
    assert levels.max() == 1
    for level, share in STEP_SHARES.items():
        assert (levels == level).float().mean().item() == pytest.approx(share, abs=0.02)
