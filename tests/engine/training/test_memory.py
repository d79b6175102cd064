"""What a training is said to take, and what is done where it has no room."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from schnell.engine.network_sizes import FLUX_SCHNELL
from schnell.errors import TrainingError
from schnell.models.folder import open_model_folder
from schnell.training.low_rank import BaseModel, place_model
from schnell.training.memory import fit_plan, training_memory
from schnell.training.plan import TrainingPlan

PLAN = TrainingPlan("x")
GB = 10**9


@pytest.fixture
def base(random_flux: Path) -> BaseModel:
    return place_model(open_model_folder(random_flux), torch.device("cpu"))


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr("schnell.training.memory.free_memory", lambda _: free)


def test_flux_takes_its_weights_and_more_and_checkpointing_saves_most_of_it() -> None:
    needed = training_memory(FLUX_SCHNELL, PLAN, 2)
    assert 24 * GB < needed.checkpointed < 32 * GB
    assert needed.checkpointed + 5 * GB < needed.whole
    # a larger batch and a higher rank take more
    assert training_memory(FLUX_SCHNELL, replace(PLAN, batch_size=8), 2).checkpointed > needed.checkpointed
    assert training_memory(FLUX_SCHNELL, replace(PLAN, rank=64), 2).checkpointed > needed.checkpointed


def test_a_plan_is_kept_checkpointed_or_refused_with_both_figures(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from schnell.engine.network_sizes import read_network_sizes

    needed = training_memory(read_network_sizes(base.folder), PLAN, base.precision.dtype.itemsize)
    with_free(monkeypatch, needed.whole)
    assert fit_plan(base, PLAN) == PLAN
    with_free(monkeypatch, needed.whole - 1)
    assert fit_plan(base, PLAN) == replace(PLAN, checkpointing=True)
    with_free(monkeypatch, needed.checkpointed - 1)
    with pytest.raises(TrainingError) as refused:
        fit_plan(base, PLAN)
    assert re.search(r"needs about \d+\.\d GB of memory on cpu, and \d+\.\d GB are free", refused.value.message)
