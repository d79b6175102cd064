"""What an engine gives its pictures to prove where they came from."""

import os
import subprocess
import sys
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from conftest import make_job
from proof import keys, pixels_of, signer
from schnell.clock import Stopwatch
from schnell.engine.engine import Engine, generate
from schnell.models.folder import ModelFolder
from schnell.provenance.file_parts import without_credentials
from schnell.provenance.mark import embed
from schnell.provenance.proof import Proof
from schnell.provenance.receipt import mark_number
from schnell.provenance.verification import verify
from schnell.spec import GeneratedImage, Size

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"size": Size(512, 512), "steps": 1, "output_format": "png"}


def draw(engine: Engine, **spec: Any) -> GeneratedImage:
    [image] = generate(engine, make_job(**(SMALL | spec)), lambda _: None).images
    return image


def pixels(image: GeneratedImage) -> NDArray[np.uint8]:
    return pixels_of(Image.open(BytesIO(image.data)))


@pytest.fixture(scope="module")
def plain(mini: ModelFolder) -> GeneratedImage:
    return draw(Engine(mini, CPU))


@pytest.fixture(scope="module")
def proving(mini: ModelFolder) -> Engine:
    return Engine(mini, CPU, proof=Proof(marks=True, signer=signer()))


@pytest.fixture(scope="module")
def proven(proving: Engine) -> GeneratedImage:
    return draw(proving)


def test_the_mark_is_put_into_the_pixels_that_are_drawn_without_it(
    plain: GeneratedImage, proven: GeneratedImage
) -> None:
    number = mark_number(proven.receipt)
    assert np.array_equal(pixels(proven), embed(pixels(plain), number))
    assert proven.mark == f"{number:010x}"
    # the receipt tells of the mark, and of nothing else that differs
    assert {**plain.receipt, "mark": "schnell.mark.1"} == proven.receipt


def test_a_proven_picture_verifies_in_every_way(proven: GeneratedImage) -> None:
    found = verify(proven.data, roots_pem=keys().roots_pem())
    assert (found.credentials.state, found.credentials.label) == ("trusted", proven.manifest)
    assert found.mark is not None
    assert found.receipt is not None
    assert (found.mark.found, found.receipt.agrees_with_mark) == (True, True)


def test_a_request_without_a_mark_gets_the_picture_as_it_was_before_there_were_marks(
    plain: GeneratedImage, proving: Engine
) -> None:
    unmarked = draw(proving, watermark=False)
    assert unmarked.mark is None
    assert without_credentials(unmarked.data) == plain.data


def test_an_engine_that_does_not_sign_needs_no_library_that_signs() -> None:
    code = "import sys; sys.modules['c2pa'] = None; import schnell.serving.worker"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": ":".join(sys.path)})


def test_a_flagged_picture_gets_no_proof(mini: ModelFolder) -> None:
    class Strict:
        def flags(self, picture: Image.Image) -> bool:  # noqa: ARG002 - the checker's form
            return True

    engine = Engine(mini, CPU, Strict(), proof=Proof(marks=True, signer=signer()))  # type: ignore[arg-type]
    drawn, watch = Image.new("RGB", (128, 128)), Stopwatch()
    assert engine.finish(make_job(**SMALL), 0, drawn, watch) is None
    assert not {"mark", "sign"} & set(watch.seconds)
