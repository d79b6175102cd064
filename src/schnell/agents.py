"""What agents use: the tools `generate_image`, `list_loras` and `get_result` of the Model Context Protocol.

Each is a call or two of the native HTTP API; the protocol (https://modelcontextprotocol.io) is the official SDK's.

Over HTTP alone, so that an agent's request is checked, counted and charged as anybody's, whether its server runs in
this process (`/mcp`) or elsewhere (`schnell mcp`).
"""

import base64
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Final, Literal

import httpx
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ContentBlock, ImageContent, InputRequiredResult, TextContent
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schnell.spec import (
    ASPECT_RATIOS,
    CUSTOM_RATIO,
    DEFAULT_LORA_SCALE,
    MAX_LORA_SCALE,
    MAX_LORAS,
    MAX_OUTPUTS,
    MAX_PROMPT_LENGTH,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MIN_SIDE,
    SIDE_STEP,
)

#: Gives a client of the native API with the caller's key, for one call of a tool.
Connect = Callable[[Context[Any, Any]], AbstractAsyncContextManager[httpx.AsyncClient]]

_INSTRUCTIONS: Final = (
    "Draws pictures with FLUX.1 [schnell] and LoRAs. Ask list_loras for the styles that there are; name them in "
    "generate_image, and put their trigger words into the prompt."
)
_MODEL: Final = "black-forest-labs/flux-schnell-lora"
_Ratio = Literal["1:1", "16:9", "9:16", "3:2", "2:3", "4:5", "5:4", "custom"]
assert set(_Ratio.__args__) == {*ASPECT_RATIOS, CUSTOM_RATIO}  # type: ignore[attr-defined]  # noqa: S101


class LoraChoice(BaseModel):
    """A LoRA and how strongly it acts."""

    # what is no field is the API's to name
    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(description="Its name from list_loras, owner/name on Hugging Face, or an https address")]
    scale: Annotated[float, Field(ge=0, le=MAX_LORA_SCALE)] = DEFAULT_LORA_SCALE


_Side = Annotated[
    int | None,
    Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=SIDE_STEP, description="In pixels, with aspect_ratio custom"),
]


def build_tools(connect: Connect, version: str = "") -> MCPServer[Any]:
    """A server of the protocol with the tools, which reach the native API by `connect`."""
    server: MCPServer[Any] = _ToolServer(connect, version)

    @server.tool(title="Generate images", structured_output=False)
    async def generate_image(  # noqa: PLR0913, PLR0917 - a tool's parameters are its description
        context: Context[Any, Any],
        prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_LENGTH, description="What to draw")],
        aspect_ratio: Annotated[
            _Ratio | None, Field(description="1:1 if absent, or custom where width and height are given")
        ] = None,
        megapixels: Literal["0.25", "1"] = "1",
        width: _Side = None,
        height: _Side = None,
        num_outputs: Annotated[int, Field(ge=1, le=MAX_OUTPUTS)] = 1,
        num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = MAX_STEPS,
        seed: Annotated[
            int | None, Field(ge=0, le=MAX_SEED, description="The same seed gives the same picture; random if absent")
        ] = None,
        loras: Annotated[list[LoraChoice] | None, Field(max_length=MAX_LORAS)] = None,
        output_format: Literal["webp", "png", "jpg"] = "webp",
        wait: Annotated[bool, Field(description="False: answer at once, and ask get_result later")] = True,
    ) -> CallToolResult:
        """Draw one to four pictures from a sentence, with or without LoRAs (styles)."""
        values = {
            "prompt": prompt,
            "aspect_ratio": aspect_ratio,
            "megapixels": megapixels,
            "width": width,
            "height": height,
            "num_outputs": num_outputs,
            "num_inference_steps": num_inference_steps,
            "seed": seed,
            "loras": [each.model_dump() for each in loras or ()],
            "output_format": output_format,
        }
        async with connect(context) as client:
            return await _draw(client, values, wait=wait)

    @server.tool(title="List LoRAs", structured_output=False)
    async def list_loras(context: Context[Any, Any]) -> CallToolResult:
        """The LoRAs (styles) that pictures can be drawn with: their names and their trigger words."""
        async with connect(context) as client:
            found = await _call(client, "GET", "/api/loras")
        shown = [{"name": each["name"], "triggerWords": each["triggerWords"]} for each in found.json()["loras"]]
        return _answer({"loras": shown})

    @server.tool(title="Get a result", structured_output=False)
    async def get_result(
        context: Context[Any, Any],
        uuid: Annotated[str, Field(pattern=r"^[0-9a-fA-F-]{36}$", description="The one that generate_image gave")],
    ) -> CallToolResult:
        """The state of an earlier generation, and its pictures once they are drawn."""
        async with connect(context) as client:
            return await _show_record(client, await _call(client, "GET", f"/api/results/{uuid}"))

    return server


class _ToolServer(MCPServer[Any]):
    """The SDK's server, but the API says what is wrong with arguments: the SDK's words are pydantic's, for programmers.

    Arguments that no tool has, which the SDK drops without a word, are the API's to name, too.
    """

    def __init__(self, connect: Connect, version: str) -> None:
        super().__init__("schnell", instructions=_INSTRUCTIONS, version=version, log_level="WARNING")
        self._connect = connect

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool; what the SDK would not pass on as it was sent goes to the API so."""
        drawing = name == "generate_image" and context is not None
        if drawing and not arguments.keys() <= await self._names_of(name):
            return await self._draw_as_sent(arguments, context)
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if not isinstance(error.__cause__, ValidationError):
                raise
        if drawing:
            return await self._draw_as_sent(arguments, context)
        raise ToolError(f"uuid: must be the uuid that generate_image gave, got {_show(arguments.get('uuid'))}")

    async def _names_of(self, name: str) -> set[str]:
        return next(set(tool.input_schema["properties"]) for tool in await self.list_tools() if tool.name == name)

    async def _draw_as_sent(self, arguments: Mapping[str, Any], context: Context[Any, Any] | None) -> CallToolResult:
        assert context is not None  # noqa: S101 - every call over the protocol has one
        wait = arguments.get("wait", True)
        if not isinstance(wait, bool):
            raise ToolError(f"wait: must be true or false, got {_show(wait)}")
        values = {name: value for name, value in arguments.items() if name != "wait"}
        async with self._connect(context) as client:
            return await _draw(client, values, wait=wait)


def _show(value: Any) -> str:
    return json.dumps(value)[:100]


async def _draw(client: httpx.AsyncClient, values: Mapping[str, Any], *, wait: bool) -> CallToolResult:
    asked = {"type": "IMAGE_GENERATOR", "model": _MODEL, "promptObject": values, "async": not wait}
    return await _show_record(client, await _call(client, "POST", "/api/features", json=asked))


async def _call(client: httpx.AsyncClient, method: str, path: str, **options: Any) -> httpx.Response:
    """An answer of the API; its refusals become errors of the tool, in words that a model can act on."""
    try:
        answer = await client.request(method, path, **options)
    except httpx.TransportError as error:
        raise ToolError(f"no schnell server answers at {client.base_url}: {error or type(error).__name__}") from error
    if answer.is_success:
        return answer
    try:
        told = answer.json()
        message = f"{told['message']} ({told['errorCode']})"
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {answer.status_code}"
    raise ToolError(message)


async def _show_record(client: httpx.AsyncClient, answer: httpx.Response) -> CallToolResult:
    record = answer.json()["aiRecord"]
    detail = record["aiRecordDetail"]
    found = detail["responseObject"]
    shown = {"uuid": record["uuid"], "status": record["status"], "cost": int(answer.headers.get("x-schnell-cost", 0))}
    shown |= {name: found[name] for name in ("seeds", "width", "height", "loras", "warnings", "error") if name in found}
    shown |= {"urls": found.get("temporaryUrls", [])}
    pictures = [await _picture(client, _key_of(each)) for each in detail["resultObject"]]
    return _answer(shown, *pictures, failed=record["status"] == "FAILURE")


def _key_of(result: str) -> str:
    # an operator may have put the address of another host before the key, which is always the last three parts
    return "/".join(result.rsplit("/", 3)[-3:])


async def _picture(client: httpx.AsyncClient, key: str) -> ImageContent:
    answer = await _call(client, "GET", f"/{key}")
    data = base64.b64encode(answer.content).decode()
    return ImageContent(type="image", data=data, mime_type=answer.headers["content-type"])


def _answer(facts: dict[str, Any], *pictures: ImageContent, failed: bool = False) -> CallToolResult:
    content: list[ContentBlock] = [TextContent(type="text", text=json.dumps(facts, ensure_ascii=False)), *pictures]
    return CallToolResult(content=content, is_error=failed)
