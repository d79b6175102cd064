from io import BytesIO

import numpy as np
import torch
from PIL import Image

from conftest import make_job
from schnell.benchmarks.single import psnr
from schnell.engine.denoise import Drawing, begin_drawing
from schnell.engine.device import FLOAT32
from schnell.engine.engine import Engine
from schnell.engine.loaded_model import PromptRequest
from schnell.engine.pictures import PreviewFit
from schnell.engine.text import PromptEmbedding
from schnell.models.folder import ModelFolder
from schnell.spec import Size


def small_drawing() -> Drawing:
    return begin_drawing(PromptEmbedding(torch.zeros(1, 4), torch.zeros(4), False), 1, 1, Size(2, 2))


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


def test_tiles_give_the_picture_that_is_decoded_whole(mini: ModelFolder) -> None:
    engine = Engine(mini, torch.device("cpu"))
    [embedding] = engine.encode_prompts([PromptRequest("red apple")], FLOAT32)
    drawings = engine.step(engine.begin(make_job(size=Size(1024, 768), steps=1), embedding), FLOAT32)
    [whole], [tiled] = engine.decode(drawings, FLOAT32), engine.decode(drawings, FLOAT32, tiles=True)
    assert tiled.size == whole.size
    assert psnr(tiled, whole) > 50


def test_after_the_first_pictures_only_some_are_learned_from() -> None:
    fit, drawing = PreviewFit(), small_drawing()
    learned = [fit.lesson(drawing) is not None for _ in range(160)]
    assert all(learned[:16])
    assert sum(learned[16:]) == 18


def test_a_lesson_holds_none_of_the_devices_memory() -> None:
    drawing = small_drawing()
    lesson = PreviewFit().lesson(drawing)
    assert lesson is not None
    assert lesson.latents.nbytes == 16 * 16 * 4
    assert not np.shares_memory(lesson.latents, drawing.latents.numpy())
