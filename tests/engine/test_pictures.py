from io import BytesIO

import numpy as np
import torch
from PIL import Image

from conftest import make_job
from schnell.engine.device import FLOAT32
from schnell.engine.engine import Engine, PromptRequest
from schnell.engine.pictures import PreviewFit
from schnell.models.folder import ModelFolder
from schnell.spec import Size


def test_a_preview_of_the_first_step_resembles_the_finished_picture(mini: ModelFolder) -> None:
    engine, fit = Engine(mini, torch.device("cpu")), PreviewFit()
    size = Size(512, 384)
    for prompt in ("red apple on a blue background", "green tree on a yellow background"):
        [embedding] = engine.encode_prompts([PromptRequest(prompt)], FLOAT32)
        drawings = engine.begin(make_job(prompt, size=size), embedding)
        first = drawings = engine.step(drawings, FLOAT32)
        while not drawings[0].is_done:
            drawings = engine.step(drawings, FLOAT32)
        [picture] = engine.decode(drawings, FLOAT32)
        lesson = fit.lesson(drawings[0])
        assert lesson is not None
        fit.learn(lesson, picture)
    preview = Image.open(BytesIO(fit.paint(first[0], size)))
    assert preview.size == (256, 192)
    finished = np.asarray(picture.resize(preview.size), dtype=np.float64)
    other = np.asarray(Image.new("RGB", preview.size, (60, 110, 230)), dtype=np.float64)
    shown = np.asarray(preview, dtype=np.float64)
    assert np.abs(shown - finished).mean() < 30
    assert np.abs(shown - finished).mean() < np.abs(shown - other).mean()


def test_before_any_picture_there_is_no_preview(mini: ModelFolder) -> None:
    fit = PreviewFit()
    assert not fit.is_ready
