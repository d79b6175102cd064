"""What the embedded model knows, and which prompts are told that it does not know them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from schnell.engine.engine import Engine
from schnell.engine.loaded_model import PromptRequest
from schnell.engine.subjects import FILE, read_subjects
from schnell.errors import ModelFolderError
from schnell.models.catalogue import find_model
from schnell.spec import GenerationSpec, Job


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(find_model("schnell-mini"), torch.device("cpu"))


def warnings(engine: Engine, prompt: str, *, go_fast: bool) -> tuple[str, ...]:
    """What a job with this prompt is told."""
    [embedding] = engine.encode_prompts([PromptRequest(prompt)], engine.precision_for(go_fast=go_fast))
    job = Job("one", "team", GenerationSpec(prompt=prompt, go_fast=go_fast), seed=0)
    return engine.warnings_for(job, embedding)


@pytest.mark.parametrize("go_fast", [False, True])
@pytest.mark.parametrize(
    "prompt", ["كلب صغير", "logo that says ACME", "ein roter Apfel", "eine rote Katze", "asdf qwer"]
)
def test_a_prompt_about_nothing_that_it_knows_is_told_so(engine: Engine, prompt: str, go_fast: bool) -> None:
    [warning] = warnings(engine, prompt, go_fast=go_fast)
    assert warning.startswith("schnell-mini knows 1,601 icons; nearest: '")


@pytest.mark.parametrize(
    "prompt",
    [
        "red apple",
        "golden retriever puppy",
        "a photo of a rocket on a sky blue background",
        "castle, pixel art",
        "Futuristic cityscape at night, neon lights, cyberpunk style",
    ],
)
def test_a_prompt_about_what_it_knows_is_told_nothing(engine: Engine, prompt: str) -> None:
    assert warnings(engine, prompt, go_fast=True) == ()


def test_a_model_without_a_list_of_subjects_warns_of_none(tmp_path: Path) -> None:
    assert read_subjects(tmp_path) is None


@pytest.mark.parametrize("damage", ["not a safetensors file", "too few names"])
def test_a_damaged_list_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / FILE
    if damage == "too few names":
        tensors = {"directions": torch.zeros(2, 4), "centre": torch.zeros(4)}
        save_file(tensors, path, {"kind": "icons", "names": json.dumps(["apple"])})
    else:
        path.write_bytes(b"nothing")
    with pytest.raises(ModelFolderError, match=FILE):
        read_subjects(tmp_path)
