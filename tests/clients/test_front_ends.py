"""The requests of front ends in the order in which they make them, with the values that they have built in.

Written after their documented APIs and their published requests: Open WebUI (both image engines), SillyTavern,
LibreChat, n8n, Dify. Each test reads of the answers what the front end reads.
"""

import base64
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from client_service import PROMPT, Service

LORA_MODEL = "flux-schnell-lora:black-light"


@pytest.fixture
def bearer(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {service.key}"}, timeout=120) as client:
        yield client


@pytest.fixture
def basic(service: Service) -> Iterator[httpx.Client]:
    """As A1111's front ends ask: `user:password`, where the key is the password."""
    with httpx.Client(base_url=service.url, auth=("me", service.make_key()), timeout=120) as client:
        yield client


def asked(client: httpx.Client, method: str, path: str, **options: Any) -> Any:
    answer = client.request(method, path, **options)
    assert answer.is_success, answer.text
    return answer.json()


def size_of(picture: str) -> tuple[int, int]:
    with Image.open(io.BytesIO(base64.b64decode(picture))) as opened:
        assert opened.format == "PNG"
        return opened.size


def test_open_webui_with_the_openai_engine(bearer: httpx.Client) -> None:
    models = [each["id"] for each in asked(bearer, "GET", "/v1/models")["data"]]
    assert LORA_MODEL in models
    body = {"model": LORA_MODEL, "prompt": PROMPT, "n": 1, "size": "512x512", "response_format": "b64_json"}
    drawn = asked(bearer, "POST", "/v1/images/generations", json=body)
    assert [size_of(each["b64_json"]) for each in drawn["data"]] == [(512, 512)]
    assert drawn["loras"][0]["name"] == "black-light"
    # for names that begin with gpt-image it leaves response_format out, and reads a link where there is one
    linked = asked(bearer, "POST", "/v1/images/generations", json=body | {"response_format": "url"})
    assert bearer.get(linked["data"][0]["url"]).headers["content-type"] == "image/png"


def test_open_webui_with_the_automatic1111_engine(basic: httpx.Client) -> None:
    models = [{"id": each["title"], "name": each["model_name"]} for each in asked(basic, "GET", "/sdapi/v1/sd-models")]
    assert {"id": LORA_MODEL, "name": LORA_MODEL} in models
    options = asked(basic, "GET", "/sdapi/v1/options")
    assert options["sd_model_checkpoint"] != LORA_MODEL
    options["sd_model_checkpoint"] = LORA_MODEL
    asked(basic, "POST", "/sdapi/v1/options", json=options)
    assert asked(basic, "GET", "/sdapi/v1/options")["sd_model_checkpoint"] == LORA_MODEL
    body = {"prompt": PROMPT, "batch_size": 1, "width": 512, "height": 512, "steps": 50, "cfg_scale": 7.0}
    drawn = asked(basic, "POST", "/sdapi/v1/txt2img", json=body | {"sampler_name": "Euler a", "scheduler": "Karras"})
    assert [size_of(each) for each in drawn["images"]] == [(512, 512)]
    info = json.loads(drawn["info"])
    assert (info["loras"][0]["name"], info["steps"]) == ("black-light", 4)


def test_sillytavern(basic: httpx.Client) -> None:
    asked(basic, "GET", "/sdapi/v1/options")
    upscalers = [each["name"] for each in asked(basic, "GET", "/sdapi/v1/upscalers")]
    upscalers += [each["name"] for each in asked(basic, "GET", "/sdapi/v1/latent-upscale-modes")]
    assert upscalers == ["None", "Latent"]
    assert [each["model_name"] for each in asked(basic, "GET", "/sdapi/v1/sd-vae")] == []
    samplers = [each["name"] for each in asked(basic, "GET", "/sdapi/v1/samplers")]
    schedulers = [each["name"] for each in asked(basic, "GET", "/sdapi/v1/schedulers")]
    models = [{"value": each["title"], "text": each["title"]} for each in asked(basic, "GET", "/sdapi/v1/sd-models")]
    asked(basic, "POST", "/sdapi/v1/options", json={"sd_model_checkpoint": models[0]["value"]})
    # it waits for a model to be loaded until nothing is under way
    state = asked(basic, "GET", "/sdapi/v1/progress")
    assert (state["progress"], state["state"]["job_count"]) == (0.0, 0)
    body = {
        "prompt": f"{PROMPT} <lora:black-light:0.8>",
        "negative_prompt": "lowres, bad anatomy",
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "forge_additional_modules": []},
        "override_settings_restore_afterwards": True,
        "sampler_name": samplers[0],
        "scheduler": schedulers[0],
        "steps": 20,
        "cfg_scale": 7,
        "width": 512,
        "height": 512,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 2,
        "hr_additional_modules": [],
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "seed": -1,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
        "adetailer": None,
    }
    drawn = asked(basic, "POST", "/sdapi/v1/txt2img", json=body)
    assert size_of(drawn["images"][0]) == (512, 512)
    assert asked(basic, "POST", "/sdapi/v1/interrupt") == {}


def test_librechat(service: Service, bearer: httpx.Client) -> None:
    # its Stable Diffusion tool sends no key of its own: a reverse proxy adds it
    body = {"prompt": PROMPT, "negative_prompt": "blurry", "cfg_scale": 4.5, "steps": 22, "width": 1024, "height": 1024}
    drawn = asked(bearer, "POST", "/sdapi/v1/txt2img", json=body)
    assert size_of(drawn["images"][0]) == (1024, 1024)
    assert json.loads(drawn["info"])["infotexts"][0].startswith(f"{PROMPT}\nSteps: 4")
    # its OpenAI image tool, with IMAGE_GEN_OAI_BASEURL and IMAGE_GEN_OAI_MODEL
    body = {
        "model": "flux-schnell-lora",
        "prompt": PROMPT,
        "background": "auto",
        "n": 1,
        "output_compression": 100,
        "output_format": "png",
        "quality": "auto",
        "size": "auto",
        "user": "65f0c0ffee",
    }
    made = asked(bearer, "POST", "/v1/images/generations", json=body)
    assert size_of(made["data"][0]["b64_json"]) == (1024, 1024)
    assert made["warnings"] == []


def test_n8n(bearer: httpx.Client) -> None:
    assert LORA_MODEL in [each["id"] for each in asked(bearer, "GET", "/v1/models")["data"]]
    body = {"prompt": PROMPT, "model": LORA_MODEL, "response_format": "b64_json", "n": 2, "size": "512x512"}
    drawn = asked(bearer, "POST", "/v1/images/generations", json=body | {"quality": "hd", "style": "vivid"})
    assert [size_of(each["b64_json"]) for each in drawn["data"]] == [(512, 512)] * 2
    # the HTTP node, on the reference document's API
    values = {"prompt": PROMPT, "megapixels": "0.25"}
    record = asked(
        bearer,
        "POST",
        "/api/features",
        json={"type": "IMAGE_GENERATOR", "model": "black-forest-labs/flux-schnell-lora", "promptObject": values},
    )["aiRecord"]
    assert bearer.get(record["temporaryUrl"]).content[:4] == b"RIFF"
    key = record["aiRecordDetail"]["resultObject"][0]
    assert bearer.get(f"/{key}").content[:4] == b"RIFF"


def test_dify(basic: httpx.Client, bearer: httpx.Client) -> None:
    titles = [each["title"] for each in asked(basic, "GET", "/sdapi/v1/sd-models")]
    asked(basic, "POST", "/sdapi/v1/options", json={"sd_model_checkpoint": titles[0]})
    assert [each["name"] for each in asked(basic, "GET", "/sdapi/v1/samplers")] == ["Euler"]
    body = {
        "prompt": f"{PROMPT},<lora:black-light:1>",
        "negative_prompt": "",
        "steps": "20",
        "cfg_scale": "7.0",
        "sampler_name": "DPM++ 2M Karras",
        "width": "512",
        "height": "512",
        "seed": "-1",
        "batch_size": 1,
        "n_iter": 1,
        "do_not_save_samples": False,
        "override_settings": {"sd_model_checkpoint": titles[0]},
    }
    drawn = asked(basic, "POST", "/sdapi/v1/txt2img", json=body)
    assert size_of(drawn["images"][0]) == (512, 512)
    # its OpenAI tool, with the model's name set to one that is served
    body = {"prompt": PROMPT, "model": "flux-schnell-lora", "size": "1024x1024", "n": 1, "quality": "standard"}
    made = asked(
        bearer, "POST", "/v1/images/generations", json=body | {"style": "natural", "response_format": "b64_json"}
    )
    assert size_of(made["data"][0]["b64_json"]) == (1024, 1024)


def test_progress_is_what_front_ends_parse_while_a_picture_is_drawn(basic: httpx.Client, service: Service) -> None:
    values = {"prompt": PROMPT, "width": 1024, "height": 1024, "batch_size": 4, "steps": 4}
    seen: list[float] = []

    def draw() -> None:
        with httpx.Client(base_url=service.url, auth=basic.auth, timeout=120) as client:
            asked(client, "POST", "/sdapi/v1/txt2img", json=values)

    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(draw)
        while not drawing.done():
            state = asked(basic, "GET", "/sdapi/v1/progress")
            assert {"progress", "eta_relative", "state", "current_image"} <= set(state)
            seen.append(state["progress"])
            time.sleep(0.1)
        drawing.result()
    assert seen == sorted(seen) or seen[-1] == 0.0
    assert any(0 < each <= 1 for each in seen)
