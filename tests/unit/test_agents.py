import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from mcp import Client
from mcp.types import CallToolResult, ImageContent, TextContent

from schnell.agents import build_tools

Answer = Callable[[httpx.Request], httpx.Response]
UUID = "0b6c9d1e-6f5e-4c52-9a55-2f6d0a3b7c11"
KEY = "development/images/2026_11_25_15_09_24_339_000001.webp"


def record(status: str = "SUCCESS", results: tuple[str, ...] = (KEY,), **response: Any) -> dict[str, Any]:
    detail = {"promptObject": {}, "resultObject": list(results), "responseObject": response}
    return {"aiRecord": {"uuid": UUID, "status": status, "aiRecordDetail": detail}}


async def call(answer: Answer, tool: str, **arguments: Any) -> CallToolResult:
    @asynccontextmanager
    async def connect(_: object) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://schnell") as client:
            yield client

    async with Client(build_tools(connect)) as client:
        return await client.call_tool(tool, arguments)


def text_of(result: CallToolResult) -> str:
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


async def test_a_tool_sends_what_the_native_api_takes() -> None:
    bodies: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/features":
            bodies.append(json.loads(request.content))
            return httpx.Response(200, json=record(seeds=[7]), headers={"x-schnell-cost": "400"})
        return httpx.Response(200, content=b"picture", headers={"content-type": "image/webp"})

    drawn = await call(answer, "generate_image", prompt="a cat", seed=7, loras=[{"name": "glow"}], wait=False)
    values = {key: value for key, value in bodies[0]["promptObject"].items() if value is not None}
    assert values == {
        "prompt": "a cat",
        "megapixels": "1",
        "num_outputs": 1,
        "num_inference_steps": 4,
        "seed": 7,
        "loras": [{"name": "glow", "scale": 0.8}],
        "output_format": "webp",
    }
    assert bodies[0]["async"] is True
    told = json.loads(text_of(drawn))
    assert told == {"uuid": UUID, "status": "SUCCESS", "cost": 400, "seeds": [7], "urls": []}
    assert isinstance(drawn.content[1], ImageContent)
    assert drawn.content[1].mime_type == "image/webp"


@pytest.mark.parametrize(
    "sent", [{"num_outputs": 9}, {"foo": 9}, {"prompt": None}, {"loras": [{"name": "glow", "strength": 1}]}]
)
async def test_what_a_tool_does_not_take_is_sent_on_for_the_api_to_judge(sent: dict[str, Any]) -> None:
    bodies: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(400, json={"errorCode": "INVALID_FIELD", "message": "in the API's words"})

    asked = {"prompt": "a cat"} | sent
    refused = await call(answer, "generate_image", wait=False, **asked)
    assert (refused.is_error, text_of(refused)) == (True, "in the API's words (INVALID_FIELD)")
    assert (bodies[0]["promptObject"], bodies[0]["async"]) == (asked, True)


@pytest.mark.parametrize(
    ("tool", "sent", "words"),
    [
        ("get_result", {"uuid": "abc"}, 'uuid: must be the uuid that generate_image gave, got "abc"'),
        ("get_result", {}, "uuid: must be the uuid that generate_image gave, got null"),
        ("generate_image", {"prompt": "a cat", "wait": "later"}, 'wait: must be true or false, got "later"'),
    ],
)
async def test_what_the_api_has_no_field_for_is_refused_by_its_name(
    tool: str, sent: dict[str, Any], words: str
) -> None:
    refused = await call(lambda _: httpx.Response(500), tool, **sent)
    assert (refused.is_error, text_of(refused)) == (True, words)


async def test_a_picture_is_found_by_its_key_whatever_stands_before_it() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if request.url.path.startswith("/api/results/"):
            return httpx.Response(200, json=record(results=(f"https://pictures.example/{KEY}",)))
        return httpx.Response(200, content=b"picture", headers={"content-type": "image/webp"})

    await call(answer, "get_result", uuid=UUID)
    assert asked == [f"/api/results/{UUID}", f"/{KEY}"]


async def test_a_failed_generation_is_an_error_with_its_reason() -> None:
    found = record("FAILURE", (), error={"errorCode": "NSFW_CONTENT", "message": "flagged"})
    result = await call(lambda _: httpx.Response(200, json=found), "get_result", uuid=UUID)
    assert result.is_error
    assert "NSFW_CONTENT" in text_of(result)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            httpx.Response(400, json={"errorCode": "INVALID_FIELD", "message": "seed: wrong"}),
            "seed: wrong (INVALID_FIELD)",
        ),
        (httpx.Response(502, text="<html>"), "the server answered 502"),
        (httpx.Response(500, json=["?"]), "the server answered 500"),
    ],
)
async def test_a_refusal_is_told_in_the_apis_words(answer: httpx.Response, words: str) -> None:
    result = await call(lambda _: answer, "list_loras")
    assert (result.is_error, words in text_of(result)) == (True, True)


async def test_a_server_that_is_away_is_named() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    result = await call(refuse, "list_loras")
    assert "no schnell server answers at http://schnell" in text_of(result)
