import sys

import pytest

from schnell.cli import main
from schnell.models import catalogue


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["schnell", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(str(ended.value.code))


def test_a_wrong_value_exits_2_and_names_the_field(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "generate", "apple", "--steps", "9") == 2
    told = capsys.readouterr()
    assert told.err == "schnell: num_inference_steps: must be 1-4, got 9\n"
    assert told.out == ""


def test_another_failure_exits_1_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "models", "path", "no-such-model") == 1
    assert capsys.readouterr().err.startswith("schnell: no model is called 'no-such-model'")


def test_an_interrupted_command_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt(name)

    monkeypatch.setattr(catalogue, "find_model", interrupt)
    assert _run(monkeypatch, "models", "path", "schnell-mini") == 130
