from pathlib import Path
from typing import Any

import pytest
import torch

from schnell.engine.denoise import Drawing, initial_noise, predict_velocity
from schnell.engine.device import FLOAT32
from schnell.engine.text import PromptEmbedding
from schnell.models.folder import open_model_folder
from schnell.spec import Size
from schnell.training.kept_blocks import join_inputs, record_inputs, run_from
from schnell.training.low_rank import BaseModel, install_low_rank

GRID = Size(4, 3)
LATE = r"single_transformer_blocks\.0\.(proj_mlp|proj_out)"


def _drawings(count: int) -> list[Drawing]:
    torch.manual_seed(1)
    prompts = [PromptEmbedding(torch.randn(16, 32), torch.randn(32), was_truncated=False) for _ in range(count)]
    return [Drawing(initial_noise(seed, GRID), (0.75, 0.5), 0, GRID, prompt) for seed, prompt in enumerate(prompts)]


@pytest.fixture(params=[LATE, None], ids=["a late block", "all blocks"])
def transformer(request: pytest.FixtureRequest, random_flux: Path) -> Any:
    network = BaseModel(open_model_folder(random_flux), FLOAT32, torch.device("cpu")).load("transformer")
    for layer in install_low_rank(network, 4, seed=0, only=request.param).values():
        torch.nn.init.normal_(layer.b, std=0.05)
    return network


def test_what_was_kept_leads_to_the_same_velocity(transformer: Any) -> None:
    drawings = _drawings(3)
    inputs, velocity = record_inputs(transformer, drawings)
    torch.testing.assert_close(run_from(transformer, inputs), velocity)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(run_from(transformer, inputs.take(rows)), velocity[rows])


def test_factors_that_changed_since_act_on_what_was_kept(transformer: Any) -> None:
    drawings = _drawings(2)
    inputs, before = record_inputs(transformer, drawings)
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
        after = predict_velocity(transformer, drawings)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(run_from(transformer, inputs), after)


def test_parts_are_joined_row_by_row(transformer: Any) -> None:
    drawings = _drawings(3)
    parts = [record_inputs(transformer, drawings[:1])[0], record_inputs(transformer, drawings[1:])[0]]
    torch.testing.assert_close(run_from(transformer, join_inputs(parts)), record_inputs(transformer, drawings)[1])
