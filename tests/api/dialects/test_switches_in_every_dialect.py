"""The native API's switches, sent under their own names to the other dialects: obeyed, or refused in that shape."""

from typing import Any

import httpx
import pytest

from servers import Server

PROMPT = "a secret garden"
Asked = tuple[str, dict[str, Any]]


def openai(**switches: Any) -> Asked:
    return "/v1/images/generations", {"prompt": PROMPT, "size": "512x512", **switches}


def replicate(**switches: Any) -> Asked:
    return "/v1/models/schnell/flux-schnell-lora/predictions", {"input": {"prompt": PROMPT, **switches}}


def huggingface(**switches: Any) -> Asked:
    return "/models/flux-schnell-lora", {"inputs": PROMPT, "parameters": switches}


def automatic1111(**switches: Any) -> Asked:
    return "/sdapi/v1/txt2img", {"prompt": PROMPT, **switches}


every_dialect = pytest.mark.parametrize("dialect", [openai, replicate, huggingface, automatic1111])


async def post(server: Server, asked: Asked) -> httpx.Response:
    return await server.client.post(asked[0], json=asked[1], headers={"Prefer": "wait"})


@every_dialect
async def test_a_prompt_is_hidden_and_fast_arithmetic_left_in_every_dialect(server: Server, dialect: Any) -> None:
    answer = await post(server, dialect(hide_prompt=True, go_fast=False))
    assert answer.is_success, answer.text
    spec = server.runner.jobs[-1].spec
    assert not spec.credentials_prompt
    assert not spec.go_fast


@every_dialect
async def test_a_team_must_be_allowed_to_leave_the_mark_out_in_every_dialect(server: Server, dialect: Any) -> None:
    refused = await post(server, dialect(disable_watermark=True))
    assert refused.status_code == 403, refused.text
    assert "may not set disable_watermark; leave it out" in refused.text
    team = (await server.client.get("/api/admin/teams")).json()[0]["id"]
    await server.client.patch(f"/api/admin/teams/{team}", json={"mayDisableWatermark": True})
    assert (await post(server, dialect(disable_watermark=True))).is_success
    assert not server.runner.jobs[-1].spec.watermark
