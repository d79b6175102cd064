"""The official MCP SDK's own client: over HTTP with a key, and over standard input and output."""

import asyncio
import base64
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ImageContent, TextContent
from PIL import Image

from client_service import LORA, PROMPT, Service

SMALL: dict[str, Any] = {
    "prompt": PROMPT,
    "seed": 42,
    "megapixels": "0.25",
    "num_inference_steps": 1,
    "output_format": "png",
}


def facts_of(result: CallToolResult) -> dict[str, Any]:
    assert isinstance(result.content[0], TextContent)
    found: dict[str, Any] = json.loads(result.content[0].text)
    return found


def pictures_of(result: CallToolResult) -> list[bytes]:
    return [base64.b64decode(each.data) for each in result.content if isinstance(each, ImageContent)]


def over_http(service: Service, key: str | None = None) -> Client:
    headers = {"Authorization": f"Bearer {key or service.key}"}
    return Client(
        streamable_http_client(f"{service.url}/mcp", http_client=httpx2.AsyncClient(headers=headers, timeout=60))
    )


def over_stdio(**environment: str) -> Client:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SCHNELL_")}
    return Client(StdioServerParameters(command=sys.executable, args=["-m", "schnell", "mcp"], env=kept | environment))


async def draw_list_and_look_up(client: Client) -> bytes:
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"generate_image", "list_loras", "get_result"}
    assert tools["generate_image"].input_schema["required"] == ["prompt"]
    drawn = await client.call_tool("generate_image", SMALL)
    facts = facts_of(drawn)
    assert (facts["status"], facts["seeds"], facts["width"], drawn.is_error) == ("SUCCESS", [42], 512, False)
    assert facts["cost"] == 250
    (picture,) = pictures_of(drawn)
    assert Image.open(io.BytesIO(picture)).size == (512, 512)
    names = [each["name"] for each in facts_of(await client.call_tool("list_loras", {}))["loras"]]
    assert "black-light" in names
    styled = await client.call_tool("generate_image", SMALL | {"loras": [{"name": "black-light", "scale": 1}]})
    assert facts_of(styled)["loras"][0]["name"] == "black-light"
    assert pictures_of(styled) != [picture]
    again = await client.call_tool("get_result", {"uuid": facts["uuid"]})
    assert pictures_of(again) == [picture]
    return picture


async def test_the_tools_over_http_draw_the_same_pixels_as_the_api(service: Service) -> None:
    async with over_http(service) as client:
        picture = await draw_list_and_look_up(client)
        assert LORA in str(await client.call_tool("list_loras", {}))
    body = {"type": "IMAGE_GENERATOR", "model": "flux-schnell-lora", "promptObject": SMALL}
    with service.client() as api:
        link = api.post("/api/features", json=body).json()["aiRecord"]["temporaryUrl"]
        assert api.get(link).content == picture


async def test_a_generation_that_is_not_waited_for_is_looked_up_later(service: Service) -> None:
    async with over_http(service) as client:
        started = await client.call_tool("generate_image", SMALL | {"wait": False})
        found = started
        for _ in range(300):
            if facts_of(found)["status"] == "SUCCESS":
                break
            await asyncio.sleep(0.1)
            found = await client.call_tool("get_result", {"uuid": facts_of(started)["uuid"]})
        assert len(pictures_of(found)) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": " "}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"aspect_ratio": "7:3"}, "aspect_ratio"),
        ({"loras": [{"name": "nobody"}]}, "no LoRA is called 'nobody'"),
        ({"loras": [{"name": "black-light"}] * 9}, "loras"),
    ],
)
async def test_a_refusal_is_an_error_that_a_model_can_act_on(
    service: Service, values: dict[str, Any], words: str
) -> None:
    async with over_http(service) as client:
        refused = await client.call_tool("generate_image", SMALL | values)
    assert refused.is_error
    assert words in str(refused.content)


async def test_a_record_of_another_team_is_not_there(service: Service) -> None:
    async with over_http(service) as client:
        uuid = facts_of(await client.call_tool("generate_image", SMALL))["uuid"]
    async with over_http(service, service.make_key()) as stranger:
        assert (await stranger.call_tool("get_result", {"uuid": uuid})).is_error


@pytest.mark.parametrize("headers", [{}, {"API-KEY": "wrong"}, {"Cookie": "schnell_session=x"}])
def test_without_a_key_there_are_no_tools(service: Service, headers: dict[str, str]) -> None:
    for method in ("POST", "GET", "DELETE"):
        answer = httpx.request(method, f"{service.url}/mcp", headers=headers)
        assert (answer.status_code, answer.json()["errorCode"]) == (401, "HTTP_EXCEPTION")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"jsonrpc": "2.0"}', b"\xff", b"[" * 50_000])
def test_a_hostile_body_is_refused(service: Service, body: bytes) -> None:
    with service.client() as client:
        answer = client.post("/mcp", content=body, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500


async def test_the_command_uses_a_running_server(service: Service) -> None:
    async with over_stdio(SCHNELL_API_URL=service.url, SCHNELL_API_KEY=service.key) as client:
        await draw_list_and_look_up(client)


async def test_the_command_draws_by_itself_where_no_server_is_named(tmp_path: Path) -> None:
    async with over_stdio(SCHNELL_DATA_DIR=str(tmp_path)) as client:
        await draw_list_and_look_up(client)
