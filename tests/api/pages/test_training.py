"""What is refused of a training before its pictures are read; trainings themselves are in a real browser's test."""

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from schnell.loras.trainings import TRAINING_BYTES, TrainingPicture, TrainingWish
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
    async with serve(training_minutes=0) as server:
        assert server.services.config.body_limits["/train"] == server.services.config.max_body_bytes


async def test_it_trains_for_whatever_model_is_served(serve: Callable[..., Any], tmp_path: Path) -> None:
    """By the real trainer, with a tiny model of FLUX's shape and another width than the embedded one's."""
    from flux_folder import write_flux_folder

    model = write_flux_folder(tmp_path / "tiny")
    (model / "schnell.json").write_text('{"draw_scale": 8, "sequence_length": 16}')
    async with serve(model=str(model)) as server:
        file = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(file, "PNG")
        form = {"trigger": "redness", "minutes": "0.005", "captions": "a red apple"}
        pictures = {"pictures": ("red.png", file.getvalue(), "image/png")}
        started = await server.client.post("/train", data=form, files=pictures)
        assert started.status_code == 202, started.text
        async with asyncio.timeout(300):
            path = f"/train/{started.json()['id']}"
            while not (told := (await server.client.get(path)).json())["ended"]:  # noqa: ASYNC110 - a process tells it
                await asyncio.sleep(0.1)
        assert (told["stage"], told["lora"]) == ("done", "redness"), told
        added = (await server.client.get("/api/loras/redness")).json()["lora"]
        assert (added["width"], added["triggerWords"]) == (32, ["redness"])
        assert (await server.draw(lora_weights="redness")).status_code == 200
