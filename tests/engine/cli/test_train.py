import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from flux_folder import write_flux_folder
from schnell.cli.application import build_app
from schnell.errors import TrainingError


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A training of two steps on one picture, with a random model that draws at an eighth of the size."""
    model = write_flux_folder(tmp_path / "tiny")
    (model / "schnell.json").write_text('{"draw_scale": 8, "sequence_length": 16}')
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (64, 64), "red").save(images / "a.png")
    out = tmp_path / "neon.safetensors"
    options = {"--trigger": "neon", "--out": out, "--model": model, "--rank": 2, "--steps": 2, "--batch-size": 1}
    return ["train", "lora", str(images), *(str(part) for option in options.items() for part in option)]


def test_a_lora_is_trained_and_its_file_named(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(build_app(), [*arguments, "--megapixels", "0.25", "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert (printed["file"], printed["steps"]) == (str(tmp_path / "neon.safetensors"), 2)
    with safe_open(printed["file"], "pt") as file:
        assert (file.metadata()["trigger_words"], file.metadata()["rank"]) == ('["neon"]', "2")
    assert "training" in result.stderr


def test_going_on_without_a_state_is_a_warning(arguments: list[str]) -> None:
    result = CliRunner().invoke(build_app(), [*arguments, "--resume"])
    assert result.exit_code == 0, result.output
    assert "warning: there was no" in result.stderr
    assert result.stdout == ""


def test_sizes_that_are_not_trained_at_are_refused(arguments: list[str]) -> None:
    result = CliRunner().invoke(build_app(), [*arguments, "--megapixels", "2"])
    assert isinstance(result.exception, TrainingError)
    assert "--megapixels" in result.exception.message
