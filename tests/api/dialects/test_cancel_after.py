import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes import FakeRunner
from servers import run_server

BODY = {"input": {"prompt": "a", "megapixels": "0.25"}}
PATH = "/v1/models/black-forest-labs/flux-schnell-lora/predictions"


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 - what is waited for is not ours to signal
            await asyncio.sleep(0.05)


async def test_a_prediction_that_lives_too_long_is_cancelled_and_costs_nothing(tmp_path: Path) -> None:
    runner = FakeRunner(gate=asyncio.Event())
    async with run_server(tmp_path, runner) as server:
        made = await server.client.post(PATH, json=BODY, headers={"Cancel-After": "5s"})
        forever = await server.client.post(PATH, json=BODY, headers={"Cancel-After": "1h30m"})

        async def is_cancelled() -> bool:
            shown = await server.client.get(made.json()["urls"]["get"])
            return bool(shown.json()["status"] == "canceled")

        await until(is_cancelled)
        assert runner.cancelled == [made.json()["id"]]
        assert (await server.client.get(forever.json()["urls"]["get"])).json()["status"] == "starting"
        await server.client.post(forever.json()["urls"]["cancel"])
        assert (await server.client.get("/api/session")).json()["usedCredit"] == 0


async def test_a_prediction_that_ends_in_time_stays_as_it_is(tmp_path: Path) -> None:
    async with run_server(tmp_path) as server:
        made = await server.client.post(PATH, json=BODY, headers={"Cancel-After": "5s", "Prefer": "wait"})
        assert made.json()["status"] == "succeeded"
        await asyncio.sleep(5.2)
        assert (await server.client.get(made.json()["urls"]["get"])).json()["status"] == "succeeded"
