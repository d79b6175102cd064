from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from schnell_mini import loop
from schnell_mini.loop import StageBudget, rate_factor, run_learner


class Counter:
    """Counts its updates and fails at one of them."""

    name = "counter"

    def __init__(self, fails_at: int | None = None) -> None:
        self.count, self.fails_at = 0, fails_at
        self.seen: list[float] = []

    def update(self, progress: float) -> Tensor:
        if self.count == self.fails_at:
            raise KeyboardInterrupt
        self.count += 1
        self.seen.append(progress)
        return torch.ones(())

    def state(self) -> dict[str, Any]:
        return {"count": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def quiet(stage: str, done: float, note: str) -> None: ...


def test_a_broken_off_stage_goes_on_where_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    budget, path = StageBudget(3600, updates=10), tmp_path / "stage.pt"
    with pytest.raises(KeyboardInterrupt):
        run_learner(Counter(fails_at=6), budget, path, quiet)
    second = Counter()
    run_learner(second, budget, path, quiet)
    assert second.count == 10
    assert second.seen == [0.6, 0.7, 0.8, 0.9]


def test_a_finished_stage_only_restores_its_state(tmp_path: Path) -> None:
    budget, path = StageBudget(3600, updates=3), tmp_path / "stage.pt"
    run_learner(Counter(), budget, path, quiet)
    again = Counter(fails_at=3)
    run_learner(again, budget, path, quiet)
    assert again.count == 3
    assert again.seen == []


def test_a_spent_budget_ends_the_stage(tmp_path: Path) -> None:
    learner = Counter()
    run_learner(learner, StageBudget(0.05), tmp_path / "stage.pt", quiet)
    assert learner.count > 0


def test_the_rate_factor_warms_up_holds_and_falls() -> None:
    assert rate_factor(0.0, 0, warm=10) == pytest.approx(0.1)
    assert rate_factor(0.5, 500) == 1.0
    assert rate_factor(1.0, 500) == pytest.approx(0.03)
