import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from schnell.cli.application import build_app


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command in an empty folder; a failure is the result's `exception`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCHNELL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: str | Path, typed: str | None = None) -> Result:
        return CliRunner().invoke(build_app(), [str(each) for each in arguments], input=typed)

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data folder, with a database in which nobody is."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "schnell.db").touch()
    return folder


@pytest.fixture
def run(invoke: Callable[..., Result]) -> Callable[..., Any]:
    """Runs the command and raises what it raises. With `--json`: what it printed, read."""

    def run(*arguments: str | Path, typed: str | None = None) -> Any:
        result = invoke(*arguments, typed=typed)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return json.loads(result.stdout) if "--json" in arguments else result

    return run
