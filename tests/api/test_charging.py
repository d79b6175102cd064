"""Charged only for what is answered: pictures that cannot be read back, and answers that never arrive."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import FakeRunner
from schnell.accounts.credits import audit
from schnell.assets.thumbnails import Thumbnails
from schnell.errors import AssetError, DatabaseUnavailableError, GenerationFailedError
from schnell.web.dialects import openai
from schnell.web.native import features
from servers import BODY, KEY, Server, body_with, run_server
from waiting import until

BEARER = {"Authorization": f"Bearer {KEY}"}
#: A request of each dialect whose answer holds the pictures themselves.
INLINE: dict[str, dict[str, Any]] = {
    "/v1/images/generations": {"prompt": "a red apple", "size": "256x256", "response_format": "b64_json"},
    "/v1/predictions": {"version": "black-forest-labs/flux-schnell-lora", "input": {"prompt": "a red apple"}},
    "/sdapi/v1/txt2img": {"prompt": "a red apple", "width": 256, "height": 256},
    "/models/black-forest-labs/flux-schnell-lora": {"inputs": "a red apple"},
}


async def used(server: Server) -> int:
    return int((await server.client.get("/api/session")).json()["usedCredit"])


async def ask(server: Server, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    return await server.client.post(path, json=body, headers=BEARER | {"Prefer": "wait"} | headers)


@pytest.mark.parametrize("problem", ["refused", "another file"])
@pytest.mark.parametrize("path", INLINE)
async def test_a_picture_that_cannot_be_read_back_is_not_charged(
    server: Server, monkeypatch: pytest.MonkeyPatch, path: str, problem: str
) -> None:
    async def get(_: str) -> bytes:
        if problem == "refused":
            raise AssetError("the bucket refused: AccessDenied")
        return b"another file"

    monkeypatch.setattr(server.services.store, "get", get)
    for _ in range(3):  # as an SDK does
        answer = await ask(server, path, INLINE[path])
        if path == "/v1/predictions":  # a failed prediction is no failed request
            assert (answer.status_code, answer.json()["status"]) == (201, "failed")
        else:
            assert answer.status_code == 503
    await until(lambda: not server.services.generations.is_busy)
    assert await used(server) == 0
    assert await server.services.store.list_keys() == []


@pytest.mark.parametrize("path", INLINE)
async def test_a_picture_in_an_answer_is_read_once(server: Server, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    reads = []
    get = server.services.store.get

    async def counted(key: str) -> bytes:
        reads.append(key)
        return await get(key)

    monkeypatch.setattr(server.services.store, "get", counted)
    # made later, from the stored picture
    monkeypatch.setattr(Thumbnails, "ask_for", lambda *_: None)
    assert (await ask(server, path, INLINE[path])).status_code in {200, 201}
    assert len(reads) == 1


async def test_links_need_no_reading_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_: str) -> bytes:
        raise AssetError("write only")

    monkeypatch.setattr(server.services.store, "get", refuse)
    assert (await server.draw()).status_code == 200
    answer = await ask(server, "/v1/images/generations", {"prompt": "a red apple", "response_format": "url"})
    assert answer.status_code == 200


@pytest.fixture
def broken_answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The first answer of the native API, and of OpenAI's, fails after the picture is charged. Call it to mend them."""

    async def fail(*_: object) -> None:
        raise RuntimeError("the answer cannot be built")

    monkeypatch.setattr(features, "describe_record", fail)
    monkeypatch.setattr(openai, "_describe", fail)
    return monkeypatch.undo


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/features", BODY),
        ("/api/features", BODY | {"async": True}),
        ("/v1/images/generations", {"prompt": "a red apple", "size": "256x256"}),
    ],
)
async def test_a_retry_of_what_was_charged_and_not_answered_is_not_charged_again(
    server: Server, broken_answer: Callable[[], None], path: str, body: dict[str, Any]
) -> None:
    assert (await ask(server, path, body)).status_code == 500
    await until(lambda: not server.services.generations.is_busy)
    charged = await used(server)
    assert charged > 0
    broken_answer()
    assert (await ask(server, path, body)).status_code == 200
    assert await used(server) == charged
    assert len(server.runner.jobs) == 1
    # the record has answered its request: the same body again is another request
    assert (await ask(server, path, body)).status_code == 200
    await until(lambda: not server.services.generations.is_busy)
    assert await used(server) == 2 * charged


async def test_another_body_dialect_or_key_gets_a_picture_of_its_own(
    server: Server, broken_answer: Callable[[], None]
) -> None:
    assert (await ask(server, "/api/features", BODY)).status_code == 500
    broken_answer()
    team = (await server.client.get("/api/session")).json()["teamId"]
    made = await server.client.post(f"/api/admin/teams/{team}/keys", json={"scopes": ["generate", "read"]})
    assert (await server.client.post("/api/features", json=body_with(seed=1))).status_code == 200
    assert (await ask(server, "/v1/images/generations", {"prompt": "a red apple"})).status_code == 200
    other = {"API-KEY": made.json()["key"], "Authorization": ""}
    assert (await server.client.post("/api/features", json=BODY, headers=other)).status_code == 200
    assert len(server.runner.jobs) == 4
    assert (await ask(server, "/api/features", BODY)).status_code == 200
    assert len(server.runner.jobs) == 4


async def test_a_prediction_whose_webhook_cannot_be_kept_is_refused_and_costs_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise DatabaseUnavailableError("away")

    monkeypatch.setattr(server.services.webhooks.subscriptions, "add", away)
    server.runner.gate = asyncio.Event()
    body = {**INLINE["/v1/predictions"], "webhook": "https://example.com/hook"}
    assert (await ask(server, "/v1/predictions", body)).status_code == 503
    await until(lambda: not server.services.generations.is_busy)
    assert await used(server) == 0


async def test_a_failure_is_drawn_again(server: Server) -> None:
    server.runner.failure = RuntimeError("out of memory")
    assert (await server.draw()).status_code == 500
    server.runner.failure = None
    assert (await server.draw()).status_code == 200
    assert len(server.runner.jobs) == 2
    assert await used(server) == 400


async def test_who_hangs_up_after_the_picture_is_stored_pays_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_server(tmp_path, FakeRunner()) as server:
        put, stored, go_on = server.services.store.put, asyncio.Event(), asyncio.Event()

        async def slow_put(*arguments: Any) -> None:
            await put(*arguments)
            stored.set()
            await go_on.wait()

        monkeypatch.setattr(server.services.store, "put", slow_put)
        asking = asyncio.create_task(server.draw())
        await stored.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        go_on.set()
        await until(lambda: not server.services.generations.is_busy)
        assert await used(server) == 400
        answer = await server.draw()
        assert answer.json()["aiRecord"]["uuid"] == server.runner.jobs[0].id
        assert await used(server) == 400
        async with server.services.database.read() as connection:
            assert await audit(connection) == []


class Away:
    """A database whose writes fail for as long as it is told to."""

    def __init__(self, server: Server, patch: pytest.MonkeyPatch) -> None:
        self.is_away = False
        write = server.services.database.write

        def flaky() -> Any:
            if self.is_away:
                raise DatabaseUnavailableError("away")
            return write()

        patch.setattr(server.services.database, "write", flaky)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schnell.generations.running.PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("schnell.generations.service.PATIENCE_SECONDS", 0.05)


DIALECTS: dict[str, dict[str, Any]] = {"/api/features": BODY} | INLINE


@pytest.mark.parametrize("path", DIALECTS)
async def test_each_dialect_says_that_a_picture_is_kept_and_pays_it_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, impatient: None, path: str
) -> None:
    away = Away(server, monkeypatch)
    server.runner.gate = asyncio.Event()
    asking = asyncio.create_task(ask(server, path, DIALECTS[path]))
    await until(lambda: bool(server.runner.jobs))
    away.is_away = True
    server.runner.gate.set()
    answer = await asking
    if path == "/v1/predictions":
        assert (answer.status_code, answer.json()["status"]) == (201, "starting")
    else:
        assert answer.status_code == 503, answer.text
        assert "drawn and kept" in answer.text
        assert answer.headers["retry-after"] == "2"
    away.is_away = False
    while (again := await ask(server, path, DIALECTS[path])).status_code == 503:  # as an SDK does
        assert "drawn and kept" in again.text
    assert again.status_code in {200, 201}, again.text
    await until(lambda: not server.services.generations.is_busy)
    # a prediction that was answered is no retry
    assert len(server.runner.jobs) == (2 if path == "/v1/predictions" else 1)


@pytest.mark.parametrize("path", ["/api/features?isStreaming=true", "/v1/images/generations"])
async def test_a_stream_ends_with_the_same_words(
    server: Server, monkeypatch: pytest.MonkeyPatch, impatient: None, path: str
) -> None:
    away = Away(server, monkeypatch)
    server.runner.gate = asyncio.Event()
    body = BODY if "features" in path else {"prompt": "a red apple", "size": "256x256", "stream": True}
    asking = asyncio.create_task(ask(server, path, body))
    await until(lambda: bool(server.runner.jobs))
    away.is_away = True
    server.runner.gate.set()
    last = (await asking).text.strip().splitlines()[-1]
    away.is_away = False
    assert "drawn and kept" in json.loads(last.removeprefix("data: ")).get("message", last)
    while (await ask(server, path.partition("?")[0], body | {"stream": False})).status_code == 503:
        pass
    assert len(server.runner.jobs) == 1


async def test_of_a_failure_nothing_is_said_that_is_not_so_yet(
    server: Server, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    away = Away(server, monkeypatch)
    server.runner.gate = asyncio.Event()
    server.runner.failure = GenerationFailedError("out of memory; nothing was charged")
    asking = asyncio.create_task(server.draw())
    await until(lambda: bool(server.runner.jobs))
    away.is_away = True
    server.runner.gate.set()
    answer = await asking
    assert (answer.status_code, answer.json()["errorCode"]) == (503, "CLOSING")
    assert "no picture (GENERATION_FAILED)" in answer.json()["message"]
    assert "nothing was charged" not in answer.text
    away.is_away = False
    server.runner.failure = None
    assert (await server.draw()).status_code == 200  # a picture of its own: the first one failed
    # until the end of the first one is written, its credits are reserved
    while await used(server) != 400:  # noqa: ASYNC110 - the server tells nobody
        await asyncio.sleep(0.05)
