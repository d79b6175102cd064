"""LiteLLM's SDK, where it is installed: it is larger than everything else that the tests use, so no group has it."""

import base64
from typing import Any

import pytest

from client_service import LORA, PROMPT, Service

litellm: Any = pytest.importorskip("litellm")


def test_it_draws_with_a_lora_by_its_model_id_and_counts_what_the_server_says(service: Service) -> None:
    drawn = litellm.image_generation(
        model=f"openai/flux-schnell-lora:{LORA}@0.8",
        prompt=PROMPT,
        api_base=f"{service.url}/v1",
        api_key=service.key,
        size="512x512",
        extra_body={"seed": 7},
    )
    assert base64.b64decode(drawn.data[0].b64_json)[1:4] == b"PNG"
    cost = drawn._hidden_params["additional_headers"]["llm_provider-x-litellm-response-cost"]
    assert float(cost) > 0


def test_a_refusal_is_its_own_exception(service: Service) -> None:
    with pytest.raises(litellm.BadRequestError, match="size"):
        litellm.image_generation(
            model="openai/flux-schnell-lora",
            prompt=PROMPT,
            api_base=f"{service.url}/v1",
            api_key=service.key,
            size="huge",
        )
