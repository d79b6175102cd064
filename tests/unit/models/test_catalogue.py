import json
import re
import shutil
from pathlib import Path

import pytest

from schnell.errors import ModelFolderError
from schnell.models.catalogue import CATALOGUE, find_model
from schnell.models.folder import COMPONENTS, ModelFolder, open_model_folder, weights_sha256


def test_the_embedded_model_is_always_here(mini: ModelFolder) -> None:
    assert (mini.draw_scale, mini.sequence_length, mini.pixels_per_token) == (4, 32, 16)
    assert mini.name == "schnell-mini"


def test_the_embedded_model_keeps_its_size_and_its_parameters_within_bounds(mini: ModelFolder) -> None:
    assert sum(file.stat().st_size for file in mini.path.parent.rglob("*") if file.is_file()) <= 50_000_000


def test_a_model_that_was_not_pulled_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCHNELL_MODELS_DIR", str(tmp_path))
    with pytest.raises(ModelFolderError, match="schnell models pull flux-schnell"):
        find_model("flux-schnell")


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(ModelFolderError, match="schnell-mini, flux-schnell"):
        find_model("flux-dev")


def test_catalogue_names_are_unique() -> None:
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)


def test_a_folder_by_path_is_a_model_with_flux_defaults(random_flux: Path) -> None:
    folder = find_model(str(random_flux))
    assert (folder.draw_scale, folder.sequence_length) == (1, 256)


def test_a_folder_that_lacks_parts_names_them(tmp_path: Path) -> None:
    for component in COMPONENTS[:-2]:
        (tmp_path / component).mkdir()
    with pytest.raises(ModelFolderError, match=r"tokenizer_2, scheduler"):
        open_model_folder(tmp_path)


def test_a_folder_of_another_network_is_refused(tmp_path: Path) -> None:
    for component in COMPONENTS:
        (tmp_path / component).mkdir()
    index = {"_class_name": "SomePipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFolderError, match="SomePipeline"):
        open_model_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"draw_scale": 0}', "draw_scale to a whole number from 1, not 0"),
        ('{"draw_scale": "4"}', "draw_scale to a whole number from 1, not '4'"),
        ('{"sequence_length": true}', "sequence_length to a whole number from 1, not True"),
        ('{"lora_layers": "blocks.(1"}', "lora_layers to a regular expression: missing"),
        ('{"lora_rank": 0}', "lora_rank to a whole number from 1, not 0"),
        ('{"noise_places": 1}', "noise_places to true or false, not 1"),
        ('{"lora_layers": 7}', "lora_layers to a regular expression"),
        ('{"lora_layer": "x"}', "sets lora_layer, which no model folder has"),
        ("[]", "is not a JSON object"),
    ],
)
def test_what_a_folder_says_of_itself_is_understood_or_refused(
    random_flux: Path, tmp_path: Path, content: str, said: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(random_flux, folder)
    (folder / "schnell.json").write_text(content)
    with pytest.raises(ModelFolderError, match=re.escape(said)):
        open_model_folder(folder)


def test_the_fingerprint_follows_the_weights(
    random_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy = tmp_path / "model" / "transformer"
    copy.mkdir(parents=True)
    source = next((random_flux / "transformer").glob("*.safetensors"))
    (copy / source.name).write_bytes(source.read_bytes())
    assert weights_sha256(copy.parent) == weights_sha256(random_flux)
    (copy / source.name).write_bytes(source.read_bytes()[:-1] + b"x")
    assert weights_sha256(copy.parent) != weights_sha256(random_flux)
