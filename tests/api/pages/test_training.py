"""What is refused of a training before its pictures are read; trainings themselves are in a real browser's test."""

import asyncio
import io
from collections.abc import Callable
from typing import Any

from schnell.loras.trainings import TRAINING_BYTES, TrainingPicture, TrainingWish
from schnell.models.catalogue import DEFAULT_MODEL, find_model
from servers import Server

FORM = {"content-type": "multipart/form-data; boundary=edge"}


async def test_a_second_training_is_refused_before_its_form_is_read(server: Server) -> None:
    trainings = server.services.trainings
    pictures = [TrainingPicture("a.png", io.BytesIO(b"no picture"))]
    wish = TrainingWish("style", minutes=1)
    first = await trainings.start("another team", "Ada", wish, pictures)
    answer = await server.client.post("/train", content=b"no form at all", headers=FORM)
    assert answer.status_code == 409, answer.text
    await trainings.cancel("another team", first.id)
    async with asyncio.timeout(60):
        while trainings.is_busy:  # noqa: ASYNC110 - it ends in a task
            await asyncio.sleep(0.01)
    answer = await server.client.post("/train", content=b"no form at all", headers=FORM)
    assert answer.status_code == 400, answer.text


async def test_a_server_that_trains_none_takes_no_pictures(serve: Callable[..., Any]) -> None:
    async with serve(training_minutes=0) as server:
        assert (await server.client.get("/train")).status_code == 404
        answer = await server.client.post("/train", content=bytes(2**21), headers=FORM)
        assert answer.status_code == 404, answer.text


async def test_only_a_server_that_trains_takes_large_bodies_for_it(serve: Callable[..., Any]) -> None:
    async with serve() as server:
        assert server.services.config.body_limits["/train"] == TRAINING_BYTES
    async with serve(model=str(find_model(DEFAULT_MODEL).path)) as server:
        assert server.services.config.body_limits["/train"] == server.services.config.max_body_bytes
