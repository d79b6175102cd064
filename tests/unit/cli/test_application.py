import sys
from pathlib import Path

import pytest
from PIL import Image

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
    monkeypatch.setenv("SCHNELL_MODELS_DIR", "empty")
    assert _run(monkeypatch, "models", "path", "flux-schnell") == 1
    assert capsys.readouterr().err.startswith("schnell: flux-schnell is not on this machine")


_TRAINING = ("train", "lora", "pictures", "--trigger", "x", "--out", "x.safetensors")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("serve", "--port", "99999"), "--port"),
        (("serve", "--data-dir", "file"), "--data-dir"),
        (("serve", "--model", "nope"), "nope"),
        (("doctor", "--data-dir", "file"), "--data-dir"),
        (("bench", "--only", "nope"), "only"),
        (("generate", "x", "--device", "nope"), "nope"),
        (("generate", "x", "--model", "nope"), "nope"),
        (("generate", "--from", "nope.webp"), "nope.webp"),
        (("models", "path", "nope"), "nope"),
        (("models", "pull", "nope"), "nope"),
        (("models", "remove", "nope"), "nope"),
        (("models", "add", "nope.safetensors"), "nope.safetensors"),
        (("models", "add", "file", "--name", "a/b"), "a/b"),
        (("loras", "inspect", "file", "--model", "nope"), "nope"),
        (("loras", "list", "--model", "nope"), "nope"),
        (("loras", "list", "--team", "nope"), "nope"),
        (("loras", "show", "nope"), "nope"),
        (("loras", "token", "nope", "--team", "acme"), "nope"),
        ((*_TRAINING, "--out", "y.txt"), "--out"),
        ((*_TRAINING, "--trigger", " "), "--trigger"),
        ((*_TRAINING, "--megapixels", "0.5"), "--megapixels"),
        ((*_TRAINING, "--rank", "2000"), "--rank"),
        ((*_TRAINING, "--model", "nope"), "nope"),
        ((*_TRAINING, "--device", "nope"), "nope"),
        (("train", "lora", "nope", *_TRAINING[3:]), "IMAGES"),
        (("users", "create", "Bo", "--team", "nope"), "nope"),
        (("users", "set", "nope"), "nope"),
        (("keys", "create", "--scope", "nope"), "nope"),
        (("keys", "create", "--rate-limit", "nope"), "nope"),
        (("keys", "create", "--expires", "2020-01-01"), "expiresAt"),
        (("keys", "create", "--name", ""), "name"),
        (("keys", "revoke", "nope"), "nope"),
        (("keys", "list", "--data-dir", "nope"), "nope"),
        (("invites", "revoke", "nope"), "nope"),
        (("usage", "--since", "nope"), "nope"),
        (("credentials", "import", "nope.pem"), "nope.pem"),
        (("verify", "picture", "--trust", "nope.pem"), "nope.pem"),
        (("cluster", "status"), "--address"),
    ],
)
def test_every_value_that_cannot_be_used_exits_2_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCHNELL_DATA_DIR", "data")
    monkeypatch.setenv("SCHNELL_MODELS_DIR", "models")
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    Path("file").touch()
    Path("pictures").mkdir()
    Image.new("RGB", (64, 64)).save("pictures/one.png")
    assert _run(monkeypatch, "teams", "create", "acme") == 0
    capsys.readouterr()
    assert _run(monkeypatch, *arguments) == 2
    told = capsys.readouterr()
    assert named in told.err
    assert "Traceback" not in told.err
    assert told.out == ""


@pytest.mark.parametrize("name", ["SCHNELL_PORT", "SCHNELL_RATE_LIMIT", "SCHNELL_BOOTSTRAP_KEY", "SCHNELL_SAFETY"])
def test_every_setting_that_cannot_be_used_exits_2_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv(name, "5x")
    assert _run(monkeypatch, "doctor") == 2
    assert capsys.readouterr().err.startswith(f"schnell: {name}: ")


def test_an_interrupted_command_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt(name)

    monkeypatch.setattr(catalogue, "find_model", interrupt)
    assert _run(monkeypatch, "models", "path", "schnell-mini") == 130
