import asyncio
import base64
import io
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from client_service import LORA, MODEL, PROMPT, Service
from pictures import psnr

ASK: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "size": "256x256"}
ONE_STEP = {"num_inference_steps": 1, "seed": 11}


@pytest.fixture
def client(service: Service) -> OpenAI:
    return OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def decoded(picture: Any) -> Image.Image:
    return opened(base64.b64decode(picture.b64_json))


def test_a_plain_base64_answer_is_png(client: OpenAI) -> None:
    answer = client.images.generate(**ASK, response_format="b64_json", extra_body=ONE_STEP)
    picture = decoded(answer.data[0])
    assert (picture.format, picture.size) == ("PNG", (256, 256))
    assert answer.data[0].url is None


def test_a_link_opens_even_with_a_foreign_authorization(client: OpenAI, service: Service) -> None:
    answer = client.images.generate(**ASK, response_format="url", extra_body=ONE_STEP)
    link = answer.data[0].url
    assert answer.data[0].b64_json is None
    file = httpx.get(str(link), headers={"Authorization": f"Bearer {service.key}"})
    assert (file.status_code, opened(file.content).format) == (200, "PNG")


def test_four_pictures_have_the_seeds_that_follow(client: OpenAI) -> None:
    answer = client.images.generate(**ASK, n=4, response_format="b64_json", extra_body=ONE_STEP)
    pictures = answer.data or []
    assert [picture.seed for picture in pictures] == [11, 12, 13, 14]
    alone = client.images.generate(**ASK, response_format="b64_json", extra_body=ONE_STEP | {"seed": 13})
    # in a batch, sums are rounded in another order than alone
    assert psnr(decoded(alone.data[0]), decoded(pictures[2])) >= 50
    assert len({decoded(picture).tobytes() for picture in pictures}) == 4


async def test_the_async_client_draws_two_at_once(service: Service) -> None:
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0) as client:
        asked = [client.images.generate(**ASK, output_format=kind, extra_body=ONE_STEP) for kind in ("jpeg", "webp")]
        answers = await asyncio.gather(*asked)
    assert [decoded(answer.data[0]).format for answer in answers] == ["JPEG", "WEBP"]
    assert [answer.output_format for answer in answers] == ["jpeg", "webp"]


def test_a_stream_shows_partial_pictures_and_then_the_picture_of_a_plain_answer(client: OpenAI) -> None:
    body = {"seed": 11, "num_inference_steps": 3}
    events = list(client.images.generate(**ASK, stream=True, partial_images=2, extra_body=body))
    partial, completed = events[:-1], events[-1]
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 2
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert {decoded(event).format for event in partial} == {"PNG"}
    assert completed.type == "image_generation.completed"
    plain = client.images.generate(**ASK, response_format="b64_json", extra_body=body)
    assert completed.b64_json == plain.data[0].b64_json


def test_a_stream_without_partial_pictures_holds_the_picture_alone(client: OpenAI) -> None:
    events = list(client.images.generate(**ASK, stream=True, extra_body=ONE_STEP))
    assert [event.type for event in events] == ["image_generation.completed"]
    assert events[0].size == "256x256"


def test_a_lora_through_extra_body_changes_the_picture(client: OpenAI) -> None:
    plain, styled = (
        client.images.generate(**ASK, response_format="b64_json", extra_body=ONE_STEP | more)
        for more in ({}, {"lora_weights": LORA, "lora_scale": 1.5})
    )
    assert decoded(plain.data[0]).tobytes() != decoded(styled.data[0]).tobytes()


def test_sizes_of_other_models_become_the_same_shape(client: OpenAI) -> None:
    answer = client.images.generate(**ASK | {"size": "1792x1024"}, response_format="b64_json", extra_body=ONE_STEP)
    assert decoded(answer.data[0]).size == (1344, 768)
    assert (answer.size, answer.model) == ("1344x768", "schnell-mini")


def test_an_automatic_size_is_a_megapixel_or_the_shape_that_is_asked_for(client: OpenAI) -> None:
    sizes = [
        client.images.generate(**ASK | {"size": "auto"}, extra_body=ONE_STEP | more).size
        for more in ({}, {"aspect_ratio": "16:9", "megapixels": "0.25"})
    ]
    assert sizes == ["1024x1024", "672x384"]


def test_what_only_other_models_have_is_overheard(client: OpenAI) -> None:
    more: dict[str, Any] = {"background": "transparent", "moderation": "low", "style": "vivid", "user": "someone"}
    assert client.images.generate(**ASK, **more, quality="low", extra_body={"seed": 1}).data


@pytest.mark.parametrize(
    ("error", "param", "code", "values"),
    [
        (openai.BadRequestError, "n", "invalid_value", {"n": 11}),
        (openai.BadRequestError, "size", "invalid_value", {"size": "100x100"}),
        (openai.BadRequestError, "size", "invalid_value", {"size": "huge"}),
        (openai.BadRequestError, "prompt", "missing_required_parameter", {"prompt": ""}),
        (openai.BadRequestError, "seed", "invalid_value", {"extra_body": {"seed": -1}}),
        (openai.BadRequestError, "output_compression", "invalid_value", {"output_compression": 101}),
        (openai.NotFoundError, None, "model_not_found", {"model": "dall-e-9"}),
    ],
)
def test_a_wrong_request_raises_the_error_that_names_the_field(
    client: OpenAI, error: type[openai.APIStatusError], param: str | None, code: str, values: dict[str, Any]
) -> None:
    with pytest.raises(error) as raised:
        client.images.generate(**ASK | values)
    assert (raised.value.param, raised.value.code) == (param, code)
    assert raised.value.response.headers["x-should-retry"] == "false"


def test_a_wrong_key_is_an_authentication_error(client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as raised:
        client.with_options(api_key="wrong").images.generate(**ASK)
    assert raised.value.code == "invalid_api_key"


def test_an_exhausted_budget_is_a_rate_limit_error_that_is_not_tried_again(service: Service) -> None:
    poor = service.make_key(team={"creditLimit": 1})
    client = OpenAI(base_url=f"{service.url}/v1", api_key=poor, max_retries=5)
    with pytest.raises(openai.RateLimitError) as raised:
        client.images.generate(**ASK)
    assert (raised.value.code, raised.value.type) == ("insufficient_quota", "insufficient_quota")
    assert raised.value.response.headers["x-should-retry"] == "false"


def test_a_key_over_its_rate_is_told_when_to_come_back(service: Service) -> None:
    client = OpenAI(base_url=f"{service.url}/v1", api_key=service.make_key(rateLimit="1/hour"), max_retries=0)
    first = client.images.with_raw_response.generate(**ASK, extra_body=ONE_STEP)
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as raised:
        client.images.generate(**ASK)
    assert raised.value.code == "rate_limit_exceeded"
    assert int(raised.value.response.headers["retry-after"]) > 60


def test_a_key_that_may_only_read_is_a_permission_error(service: Service) -> None:
    client = OpenAI(base_url=f"{service.url}/v1", api_key=service.make_key(scopes=["read"]), max_retries=0)
    with pytest.raises(openai.PermissionDeniedError):
        client.images.generate(**ASK)


def test_models_are_listed_and_found(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert MODEL in names
    found = client.models.retrieve(MODEL)
    assert (found.id, found.object, found.owned_by) == (MODEL, "model", "black-forest-labs")
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("gpt-5")
    assert raised.value.code == "model_not_found"
