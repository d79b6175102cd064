from pathlib import Path
from typing import Any

import pytest

from schnell.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("data")
KEY = "development/images/2026_01_01_00_00_00_000_000000.webp"


def test_pruning_an_empty_store_removes_nothing(run: Any) -> None:
    assert run("assets", "prune", "--json") == {"removed": 0, "orphans": 0}


def test_files_that_no_record_knows_are_removed(run: Any, tmp_path: Path) -> None:
    stray = tmp_path / "data" / "assets" / KEY
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"picture")
    assert run("assets", "prune").stdout == "removed 0 old pictures and 1 files that no record knew\n"
    assert not stray.exists()


def test_a_dry_run_counts_and_removes_nothing(run: Any, tmp_path: Path) -> None:
    stray = tmp_path / "data" / "assets" / KEY
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"picture")
    assert run("assets", "prune", "--dry-run", "--older-than", "0", "--json") == {"removed": 0, "orphans": 1}
    assert "would remove 0 old" in run("assets", "prune", "--dry-run").stdout
    assert stray.exists()


def test_a_store_that_cannot_be_used_is_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHNELL_ASSETS_URL", "ftp://x")
    with pytest.raises(ConfigurationError, match="SCHNELL_ASSETS_URL"):
        run("assets", "prune")
