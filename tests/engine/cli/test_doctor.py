import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from schnell.bootstrap import read_settings
from schnell.cli.application import build_app
from schnell.cli.doctor import Finding, examine


def _examine(folder: Path, **settings: object) -> dict[str, Finding]:
    return {each.subject: each for each in examine(read_settings(data_dir=folder, **settings))}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data folder of a server that has one team."""
    folder = tmp_path / "data"
    made = CliRunner().invoke(build_app(), ["teams", "create", "acme", "--data-dir", str(folder)])
    assert made.exit_code == 0
    return folder


def test_a_server_that_has_run_is_well(data: Path) -> None:
    found = _examine(data)
    assert {each.state for each in found.values()} == {"ok"}
    subjects = (
        "Python",
        "torch",
        "compiling",
        "model",
        "memory",
        "safety",
        "disk",
        "database",
        "pictures",
        "credits",
        "orphans",
    )
    assert set(subjects) == found.keys()


def test_a_fresh_folder_has_no_database_yet_and_gets_none(tmp_path: Path) -> None:
    found = _examine(tmp_path / "new")
    assert found["database"].state == "warning"
    assert "new" in found["database"].found
    assert "`schnell serve` makes it" in found["database"].advice
    assert "credits" not in found
    assert not (tmp_path / "new").exists()


def test_a_model_that_is_not_here_is_a_problem_with_its_remedy(tmp_path: Path) -> None:
    found = _examine(tmp_path, model="flux-schnell-nowhere")
    assert found["model"].state == "problem"
    assert found["model"].advice == "schnell models pull flux-schnell-nowhere"


def test_an_unchecked_server_is_warned_of(tmp_path: Path) -> None:
    assert _examine(tmp_path, safety=())["safety"].state == "warning"


def test_files_without_a_record_are_found(data: Path) -> None:
    stray = data / "assets" / "development" / "images" / "2026_01_01_00_00_00_000_000000.webp"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"picture")
    found = _examine(data)["orphans"]
    assert (found.state, found.advice) == ("warning", "schnell assets prune")


def test_credits_that_differ_from_the_ledger_are_a_problem(data: Path) -> None:
    with sqlite3.connect(data / "schnell.db") as database:
        database.execute("UPDATE teams SET used_credit = 5")
    found = _examine(data)["credits"]
    assert found.state == "problem"
    assert found.found.startswith("1 counters differ")


def test_a_problem_is_exit_code_1_and_every_finding_is_in_the_json(tmp_path: Path) -> None:
    arguments = ["doctor", "--data-dir", str(tmp_path), "--json"]
    well = CliRunner().invoke(build_app(), arguments)
    assert well.exit_code == 0
    assert {each["subject"]: each["state"] for each in json.loads(well.stdout)}["model"] == "ok"
    ill = CliRunner(env={"SCHNELL_MODEL": "nowhere"}).invoke(build_app(), ["doctor", "--data-dir", str(tmp_path)])
    assert ill.exit_code == 1
    assert "PROBLEM  model: no model is called 'nowhere'" in ill.stdout
    assert "→ schnell models pull nowhere" in ill.stdout


def test_it_plans_for_flux_on_a_card_that_is_not_here_before_a_download(tmp_path: Path) -> None:
    settings = read_settings(data_dir=tmp_path, model="flux-schnell", lora_rank=16)
    found = {each.subject: each for each in examine(settings, memory=24)}
    assert found["memory"].state == "ok"
    assert found["memory"].found.startswith("a card of 24 GB: float8")
    assert "up to rank 16" in found["memory"].found


def test_a_card_that_is_too_small_is_a_problem_with_both_numbers(tmp_path: Path) -> None:
    settings = read_settings(data_dir=tmp_path, model="flux-schnell", offload="none")
    found = {each.subject: each for each in examine(settings, memory=8)}
    assert found["memory"].state == "problem"
    assert "where 8.00 GB are free" in found["memory"].found
    assert "without SCHNELL_OFFLOAD=none it fits" in found["memory"].found
