"""What all dialects share: pictures, keys, history, idempotency."""

import base64
import io
from collections.abc import Callable

import httpx
import pytest
from PIL import Image

from client_service import MODEL, PROMPT, Service

SEED = 42
Draw = Callable[[httpx.Client], bytes]


def onemin(client: httpx.Client) -> bytes:
    values = {"prompt": PROMPT, "seed": SEED, "megapixels": "0.25", "num_inference_steps": 2, "output_format": "png"}
    body = {"type": "IMAGE_GENERATOR", "model": MODEL, "promptObject": values}
    return client.get(posted(client, "/api/features", body).json()["aiRecord"]["temporaryUrl"]).content


def openai(client: httpx.Client) -> bytes:
    body = {"prompt": PROMPT, "seed": SEED, "size": "512x512", "num_inference_steps": 2, "response_format": "b64_json"}
    return base64.b64decode(posted(client, "/v1/images/generations", body).json()["data"][0]["b64_json"])


def replicate(client: httpx.Client) -> bytes:
    values = {"prompt": PROMPT, "seed": SEED, "megapixels": "0.25", "num_inference_steps": 2, "output_format": "png"}
    made = posted(client, f"/v1/models/{MODEL}/predictions", {"input": values}, Prefer="wait")
    return base64.b64decode(made.json()["output"][0].partition(",")[2])


def automatic1111(client: httpx.Client) -> bytes:
    body = {"prompt": PROMPT, "seed": SEED, "width": 512, "height": 512, "steps": 2}
    return base64.b64decode(posted(client, "/sdapi/v1/txt2img", body).json()["images"][0])


def huggingface(client: httpx.Client) -> bytes:
    parameters = {"seed": SEED, "width": 512, "height": 512, "num_inference_steps": 2}
    return posted(client, f"/models/{MODEL}", {"inputs": PROMPT, "parameters": parameters}, Accept="image/png").content


DIALECTS: tuple[Draw, ...] = (onemin, openai, replicate, automatic1111, huggingface)


def posted(client: httpx.Client, path: str, body: object, **headers: str) -> httpx.Response:
    answer = client.post(path, json=body, headers=headers)
    assert answer.is_success, answer.text
    assert answer.headers["x-schnell-model"] == "schnell-mini"
    return answer


def test_one_prompt_and_seed_give_the_same_pixels_in_every_dialect(service: Service) -> None:
    with service.client() as client:
        pictures = {draw.__name__: Image.open(io.BytesIO(draw(client))).convert("RGB") for draw in DIALECTS}
        records = client.get("/api/features", params={"limit": 5}).json()["aiRecords"]
    assert {picture.size for picture in pictures.values()} == {(512, 512)}
    assert len({picture.tobytes() for picture in pictures.values()}) == 1
    assert {record["aiRecordDetail"]["responseObject"]["seed"] for record in records} == {SEED}


@pytest.mark.parametrize("draw", DIALECTS, ids=lambda draw: str(draw.__name__))
def test_a_repeated_idempotency_key_is_one_generation_and_one_charge(service: Service, draw: Draw) -> None:
    headers = {"API-KEY": service.make_key(), "Idempotency-Key": "again"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=60) as client:
        assert draw(client) == draw(client)
        assert len(client.get("/api/features").json()["aiRecords"]) == 1
        charged = client.get("/api/features").json()["aiRecords"][0]["teamUser"]["usedCredit"]
    assert charged == 300


@pytest.mark.parametrize(
    ("draw", "scheme"),
    [(onemin, "Basic"), (openai, "API-KEY"), (replicate, "Token"), (automatic1111, "Bearer"), (huggingface, "Key")],
)
def test_a_key_counts_in_every_form_in_every_dialect(service: Service, draw: Draw, scheme: str) -> None:
    form = base64.b64encode(f"anyone:{service.key}".encode()).decode() if scheme == "Basic" else service.key
    headers = {"API-KEY": form} if scheme == "API-KEY" else {"Authorization": f"{scheme} {form}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=60) as client:
        assert draw(client)[:4] == b"\x89PNG"


@pytest.mark.parametrize(("accept", "kind"), [("image/webp", "WEBP"), ("image/jpeg;q=0.9, image/png;q=0.1", "JPEG")])
def test_accept_decides_the_format(service: Service, accept: str, kind: str) -> None:
    body = {"inputs": PROMPT, "parameters": {"width": 256, "height": 256, "num_inference_steps": 1}}
    with service.client() as client:
        answer = posted(client, "/models/flux-schnell", body, Accept=accept)
    assert Image.open(io.BytesIO(answer.content)).format == kind
    assert answer.headers["content-type"] == f"image/{kind.lower()}"
