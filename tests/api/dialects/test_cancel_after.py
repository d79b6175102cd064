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


async def test_a_prediction_that_lives_too_long_is_cancelled_and_costs_nothing_and_one_that_ends_in_time_stays(
    tmp_path: Path,
) -> None:
    gate = asyncio.Event()
    async with run_server(tmp_path, FakeRunner(gate=gate)) as server:

        async def status(prediction: dict[str, Any]) -> str:
            return str((await server.client.get(prediction["urls"]["get"])).json()["status"])

        async def predict(**headers: str) -> dict[str, Any]:
            found: dict[str, Any] = (await server.client.post(PATH, json=BODY, headers=headers)).json()
            return found

        gate.set()
        ended = await predict(**{"Cancel-After": "5s", "Prefer": "wait"})
        assert ended["status"] == "succeeded"
        paid = (await server.client.get("/api/session")).json()["usedCredit"]
        gate.clear()
        # the shortest life that the header can give
        late = await predict(**{"Cancel-After": "5s"})
        forever = await predict(**{"Cancel-After": "1h30m"})

        async def is_cancelled() -> bool:
            return await status(late) == "canceled"

        await until(is_cancelled)
        assert server.runner.cancelled == [late["id"]]
        assert await status(forever) == "starting"
        assert await status(ended) == "succeeded"
        await server.client.post(forever["urls"]["cancel"])
        assert (await server.client.get("/api/session")).json()["usedCredit"] == paid
