from pathlib import Path
from typing import Any

import pytest

import checkpoint_files as files
from schnell.errors import ModelFolderError
from schnell.models import pull
from schnell.models.catalogue import CatalogueEntry


def test_the_list_says_which_models_are_here(run: Any, tmp_path: Path) -> None:
    here = {model["name"]: (model["here"], model["path"]) for model in run("models", "list", "--json")}
    assert here["schnell-mini"][0] is True
    assert here["flux-schnell"] == (False, str(tmp_path / "cache" / "schnell" / "models" / "flux-schnell"))
    lines = run("models", "list").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["schnell-mini", "here"], ["flux-schnell", "not"]]


def test_the_path_is_a_model_folder(run: Any) -> None:
    folder = Path(run("models", "path", "schnell-mini").stdout.strip())
    assert (folder / "model_index.json").is_file()


def test_a_model_that_is_not_here_is_refused_with_the_line_that_fetches_it(run: Any) -> None:
    with pytest.raises(ModelFolderError, match="schnell models pull flux-schnell"):
        run("models", "path", "flux-schnell")


def test_the_embedded_model_needs_no_pulling(run: Any) -> None:
    pulled = run("models", "pull", "schnell-mini")
    assert pulled.stdout == run("models", "path", "schnell-mini").stdout
    assert "comes with the package" in pulled.stderr


def test_a_model_is_pulled_from_the_hub_that_is_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def pull_model(entry: CatalogueEntry, *, endpoint: str | None, **_: Any) -> Path:
        asked.append((entry.name, endpoint))
        return entry.path

    monkeypatch.setattr(pull, "pull_model", pull_model)
    run("models", "pull", "flux-schnell", "--endpoint", "https://hub.example")
    assert asked == [("flux-schnell", "https://hub.example")]


def test_files_become_a_model_that_the_list_names(run: Any, tmp_path: Path, random_flux: Path) -> None:
    donor = tmp_path / "donor"
    donor.mkdir()
    for name in ("tokenizer", "tokenizer_2"):
        (donor / name).symlink_to(random_flux / name)
    [file] = files.SINGLE["all in one, fp8"](tmp_path)
    added = run("models", "add", str(file), "--from", str(donor), "--name", "mine", "--json")
    assert added["sources"]["transformer"] == str(file)
    assert run("models", "path", "mine").stdout.strip() == added["path"]
    assert run("models", "list", "--json")[-1] == {"name": "mine", "here": True, "path": added["path"]}
    assert "SCHNELL_MODEL=mine" in run("models", "add", str(random_flux), "--name", "mine", "--replace").stdout
    run("models", "remove", "mine")
    assert "mine" not in run("models", "list").stdout
