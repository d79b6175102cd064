import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from schnell_mini.__main__ import app, main


@pytest.mark.parametrize("command", ["model", "styles", "drawing", "decoder", "loras", "safety"])
def test_every_command_says_what_it_does(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "--work" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loras", "--only", "neon"], "no bundled LoRA is called 'neon'"),
        (["model", "--device", "abacus"], "got 'abacus'"),
    ],
)
def test_a_failure_is_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["schnell_mini", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("schnell_mini: ")]
    assert message in line


def test_an_earlier_run_is_not_overwritten_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(sys, "argv", ["schnell_mini", "model", "--work", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "add --resume to go on" in capsys.readouterr().err
