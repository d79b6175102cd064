"""Names of other services' models, which clients have built in: served where the operator says so, never silently."""

from typing import Any

import pytest

from mini_loras import lora_bytes
from schnell.errors import ConfigurationError

BODY = {"prompt": "a red apple", "n": 1, "size": "1024x1024", "quality": "standard", "style": "vivid"}


async def draw(server: Any, model: str) -> Any:
    return await server.client.post("/v1/images/generations", json=BODY | {"model": model})


async def test_a_name_that_the_operator_lists_draws_and_the_answer_says_what_drew(serve: Any) -> None:
    async with serve(model_aliases=("dall-e-3", "gpt-image-1=flux-schnell-lora:glow@0.5")) as server:
        files = {"file": ("glow.safetensors", lora_bytes(1))}
        assert (await server.client.post("/api/loras", files=files, data={"name": "glow"})).status_code == 201
        for name, id_, loras in (
            ("dall-e-3", "black-forest-labs/flux-schnell-lora", []),
            ("gpt-image-1", "flux-schnell-lora:glow@0.5", [{"name": "glow", "scale": 0.5}]),
        ):
            drawn = await draw(server, name)
            assert drawn.status_code == 200, drawn.text
            assert drawn.json()["warnings"] == [f"{name} is not served here: {id_} drew, as the operator says"]
            assert (drawn.json()["model"], drawn.json()["loras"]) == (drawn.headers["x-schnell-model"], loras)
            record = (await server.client.get("/api/features")).json()["aiRecords"][0]
            assert record["model"] == id_
        listed = (await server.client.get("/v1/models")).json()["data"]
        assert {"dall-e-3", "gpt-image-1"} <= {each["id"] for each in listed}
        assert (await draw(server, "dall-e-2")).status_code == 404


async def test_without_the_setting_no_other_model_is_served(serve: Any) -> None:
    async with serve() as server:
        assert (await draw(server, "dall-e-3")).status_code == 404


@pytest.mark.parametrize(
    "wrong", ["=flux-schnell", "dall-e-3=sdxl", "flux-schnell=flux-schnell:a", "a=flux-schnell:@", "flux-schnell:@"]
)
async def test_an_alias_that_cannot_be_meant_stops_the_start(serve: Any, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="SCHNELL_MODEL_ALIASES"):
        async with serve(model_aliases=(wrong,)):
            pass
