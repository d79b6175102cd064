"""What all dialects share: pictures, keys, history, idempotency."""

import base64
import io
from collections.abc import Callable

import httpx
import pytest
from PIL import Image

from client_service import LORA, MODEL, PROMPT, Service

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


def test_one_lora_gives_the_same_pixels_by_field_by_list_by_model_id_and_by_tag(service: Service) -> None:
    small = {"prompt": PROMPT, "seed": SEED, "num_inference_steps": 2}
    native = small | {"megapixels": "0.25", "output_format": "png"}
    openai_body = small | {"size": "512x512", "response_format": "b64_json"}
    parameters = {"seed": SEED, "width": 512, "height": 512, "num_inference_steps": 2}
    tagged = {"seed": SEED, "width": 512, "height": 512, "steps": 2}
    model, field, listed = f"flux-schnell-lora:{LORA}@0.8", {"lora_weights": LORA}, {"loras": [{"name": LORA}]}
    ways: dict[str, tuple[str, dict[str, object]]] = {}
    for name, extra in (("field", field), ("list", listed)):
        ways[f"native {name}"] = (
            "/api/features",
            {"type": "IMAGE_GENERATOR", "model": MODEL, "promptObject": native | extra},
        )
        ways[f"openai {name}"] = ("/v1/images/generations", openai_body | extra)
        ways[f"replicate {name}"] = (f"/v1/models/{MODEL}/predictions", {"input": native | extra})
        ways[f"huggingface {name}"] = (f"/models/{MODEL}", {"inputs": PROMPT, "parameters": parameters | extra})
    ways |= {
        "native model id": ("/api/features", {"type": "IMAGE_GENERATOR", "model": model, "promptObject": native}),
        "openai model id": ("/v1/images/generations", openai_body | {"model": model}),
        "replicate version": ("/v1/predictions", {"version": f"schnell/{model}", "input": native}),
        "huggingface model id": (f"/models/{model}", {"inputs": PROMPT, "parameters": parameters}),
        "automatic1111 tag": ("/sdapi/v1/txt2img", tagged | {"prompt": f"{PROMPT} <lora:{LORA}:0.8>"}),
        "automatic1111 lyco": ("/sdapi/v1/txt2img", tagged | {"prompt": f"<lyco:{LORA}:0.8>{PROMPT}"}),
        "automatic1111 checkpoint": (
            "/sdapi/v1/txt2img",
            tagged | {"prompt": PROMPT, "override_settings": {"sd_model_checkpoint": model}},
        ),
    }
    with service.client() as client:
        plain = pixels(client, "/v1/images/generations", openai_body)
        drawn = {way: pixels(client, path, body) for way, (path, body) in ways.items()}
    assert {way for way, found in drawn.items() if found != drawn["native field"]} == set()
    assert drawn["native field"] != plain


def pixels(client: httpx.Client, path: str, body: dict[str, object]) -> bytes:
    """The pixels of the one picture in a dialect's answer."""
    answer = posted(client, path, body, Prefer="wait", Accept="image/png, application/json")
    if answer.headers["content-type"] == "image/png":
        data = answer.content
    elif path == "/api/features":
        data = client.get(answer.json()["aiRecord"]["temporaryUrl"]).content
    else:
        found = answer.json()
        text = found["output"][0].partition(",")[2] if "output" in found else ""
        text = text or (found["images"][0] if "images" in found else found["data"][0]["b64_json"])
        data = base64.b64decode(text)
    with Image.open(io.BytesIO(data)) as opened:
        return opened.convert("RGB").tobytes()


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
