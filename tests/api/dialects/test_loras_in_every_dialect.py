"""A LoRA by field, by list, by model id and by tag, in every dialect: one picture; and what the answers say of it."""

import json
from typing import Any

import httpx
import pytest

from mini_loras import lora_bytes
from servers import Server

MODEL = "flux-schnell-lora"
BASE = {"prompt": "a red apple", "seed": 7}
Asked = tuple[str, dict[str, Any]]


def native(model: str = MODEL, **values: Any) -> Asked:
    return "/api/features", {"type": "IMAGE_GENERATOR", "model": model, "promptObject": BASE | values}


def openai(model: str = MODEL, **values: Any) -> Asked:
    return "/v1/images/generations", BASE | {"model": model, "size": "512x512"} | values


def replicate(model: str = f"schnell/{MODEL}", **values: Any) -> Asked:
    return f"/v1/models/{model}/predictions", {"input": BASE | values}


def version(text: str, **values: Any) -> Asked:
    return "/v1/predictions", {"version": text, "input": BASE | values}


def huggingface(model: str = MODEL, **values: Any) -> Asked:
    return f"/models/{model}", {"inputs": BASE["prompt"], "parameters": {"seed": 7} | values}


def automatic1111(prompt: str = "a red apple", **values: Any) -> Asked:
    return "/sdapi/v1/txt2img", BASE | {"prompt": prompt} | values


TWO = [{"path": "glow", "scale": 0.5}, {"name": "dim", "scale": 0.25}]
WAYS: dict[str, Asked] = {
    "native list": native(loras=TWO),
    "native fields": native(lora_weights="glow", lora_scale=0.5, extra_lora="dim", extra_lora_scale=0.25),
    "native model id": native(f"{MODEL}:glow@0.5", extra_lora="dim", extra_lora_scale=0.25),
    "native model id and its scale": native(f"{MODEL}:glow", lora_scale=0.5, loras=TWO[1:]),
    "openai list": openai(loras=TWO),
    "openai fields": openai(lora_weights="glow", lora_scale=0.5, extra_lora="dim", extra_lora_scale=0.25),
    "openai model id": openai(f"{MODEL}:glow@0.5", loras=TWO[1:]),
    "replicate list": replicate(loras=TWO),
    "replicate model": replicate(f"schnell/{MODEL}:glow@0.5", loras=TWO[1:]),
    "replicate version": version(f"black-forest-labs/{MODEL}:glow@0.5", loras=TWO[1:]),
    "replicate version alone": version("glow@0.5", loras=TWO[1:]),
    "huggingface list": huggingface(loras=TWO),
    "huggingface model id": huggingface(f"{MODEL}:glow@0.5", extra_lora="dim", extra_lora_scale=0.25),
    "automatic1111 tags": automatic1111("a red apple <lora:glow:0.5> <lyco:dim:0.25>"),
    "automatic1111 list": automatic1111(loras=TWO),
    "automatic1111 checkpoint": automatic1111(
        "a red apple <lora:dim:0.25>", override_settings={"sd_model_checkpoint": f"{MODEL}:glow@0.5"}
    ),
}


@pytest.fixture
async def library(server: Server) -> Server:
    for number, name in enumerate(("glow", "dim"), start=1):
        files = {"file": (f"{name}.safetensors", lora_bytes(number))}
        added = await server.client.post("/api/loras", files=files, data={"name": name})
        assert added.status_code == 201, added.text
    server.runner.jobs.clear()
    return server


async def post(server: Server, asked: Asked) -> httpx.Response:
    answer = await server.client.post(asked[0], json=asked[1], headers={"Prefer": "wait"})
    assert answer.is_success, answer.text
    return answer


async def test_every_way_to_name_loras_draws_with_the_same_files_at_the_same_scales(library: Server) -> None:
    for way, asked in WAYS.items():
        await post(library, asked)
        used = [(use.name, use.scale) for use in library.runner.jobs[-1].adapters]
        assert sorted(used) == [("dim", 0.25), ("glow", 0.5)], way
        assert library.runner.jobs[-1].seed == 7, way


async def test_eight_loras_may_be_named_and_nine_not(library: Server) -> None:
    for number in range(3, 10):
        files = {"file": ("x.safetensors", lora_bytes(number))}
        await library.client.post("/api/loras", files=files, data={"name": f"l{number}"})
    names = [{"name": name} for name in ("glow", "dim", *(f"l{number}" for number in range(3, 9)))]
    for asked in (native(loras=names), openai(loras=names), replicate(loras=names), automatic1111(loras=names)):
        await post(library, asked)
        assert len(library.runner.jobs[-1].adapters) == 8
        nine = json.loads(json.dumps(asked[1]).replace('"loras": [', '"lora_weights": "l9", "loras": ['))
        refused = await library.client.post(asked[0], json=nine)
        assert refused.status_code in {400, 422}
        assert "8 LoRAs" in refused.text


async def test_every_list_of_models_shows_the_loras_of_the_team(library: Server) -> None:
    wanted = {f"{MODEL}:glow", f"{MODEL}:dim"}
    body = (await library.client.get("/v1/models")).json()
    assert wanted <= {each["id"] for each in body["data"]}
    assert {f"schnell/{name}" for name in wanted} <= {f"{each['owner']}/{each['name']}" for each in body["results"]}
    assert wanted <= {each["title"] for each in (await library.client.get("/sdapi/v1/sd-models")).json()}
    assert {"glow", "dim"} <= {each["name"] for each in (await library.client.get("/sdapi/v1/loras")).json()}
    stranger = await library.client.post("/api/admin/teams", json={"name": "others"})
    key = await library.client.post(f"/api/admin/teams/{stranger.json()['id']}/keys", json={"name": "k"})
    seen = await library.client.get("/v1/models", headers={"API-KEY": key.json()["key"]})
    assert wanted.isdisjoint(each["id"] for each in seen.json()["data"])


async def test_a_listed_model_can_be_looked_up_and_one_that_is_not_there_cannot(library: Server) -> None:
    for name in (f"{MODEL}:glow", f"schnell/{MODEL}:glow", f"schnell/{MODEL}", MODEL):
        assert (await library.client.get(f"/v1/models/{name}")).status_code == 200, name
    assert (await library.client.get(f"/v1/models/{MODEL}:nobody")).status_code == 404


async def test_the_answer_says_what_drew_and_what_it_cost(library: Server) -> None:
    drawn = [{"name": "glow", "scale": 0.5}, {"name": "dim", "scale": 0.25}]
    answer = await post(library, openai(loras=TWO))
    assert (answer.json()["loras"], answer.json()["usage"]["cost"]) == (drawn, 800)
    for name in ("native list", "openai list", "replicate list", "huggingface list", "automatic1111 list"):
        answer = await post(library, WAYS[name])
        cost = answer.headers["x-schnell-cost"]
        assert (int(cost) > 0, answer.headers["x-litellm-response-cost"]) == (True, cost)
    answer = await post(library, WAYS["huggingface list"])
    assert answer.headers["x-schnell-loras"] == "glow@0.5, dim@0.25"
    info = json.loads((await post(library, WAYS["automatic1111 tags"])).json()["info"])
    assert info["loras"] == drawn
    prediction = (await post(library, WAYS["replicate list"])).json()
    assert "LoRA: glow at 0.5\nLoRA: dim at 0.25" in prediction["logs"]


async def test_a_checkpoint_is_kept_for_its_key_alone(library: Server) -> None:
    options = (await library.client.get("/sdapi/v1/options")).json()
    options["sd_model_checkpoint"] = f"{MODEL}:glow@0.5"
    assert (await library.client.post("/sdapi/v1/options", json=options)).status_code == 200
    assert (await library.client.get("/sdapi/v1/options")).json() == options
    await post(library, automatic1111())
    assert [use.name for use in library.runner.jobs[-1].adapters] == ["glow"]
    made = await library.client.post("/api/admin/teams", json={"name": "others"})
    key = (await library.client.post(f"/api/admin/teams/{made.json()['id']}/keys", json={"name": "k"})).json()["key"]
    seen = await library.client.get("/sdapi/v1/options", headers={"API-KEY": key})
    assert seen.json()["sd_model_checkpoint"] == "black-forest-labs/flux-schnell-lora"


async def test_a_lora_that_is_not_there_is_named_by_its_place(library: Server) -> None:
    for asked, place in (
        (native(loras=[{"path": "nobody"}]), "loras.0.path"),
        (native(f"{MODEL}:nobody"), "model"),
        (native(extra_lora="nobody"), "extra_lora"),
        (replicate(loras=["nobody"]), "input.loras.0.path"),
        (huggingface(lora_weights="nobody"), "parameters.lora_weights"),
        (automatic1111("a <lora:nobody:1>"), "prompt"),
    ):
        refused = await library.client.post(asked[0], json=asked[1])
        assert refused.status_code in {400, 422}
        assert place in refused.text
        assert "no LoRA is called 'nobody'" in refused.text


async def test_go_fast_strengthens_loras_only_where_the_operator_says_so(serve: Any) -> None:
    async with serve(go_fast_lora_factor=1.5) as server:
        files = {"file": ("x.safetensors", lora_bytes(1))}
        await server.client.post("/api/loras", files=files, data={"name": "glow"})
        for go_fast, scale in ((True, 1.2), (False, 0.8)):
            await post(server, native(prompt="a glow worm", lora_weights="glow", go_fast=go_fast))
            # the library draws a preview of a new LoRA beside the requests
            drawn = [job for job in server.runner.jobs if job.spec.prompt == "a glow worm"]
            assert drawn[-1].adapters[0].scale == pytest.approx(scale)


async def test_unknown_fields_are_named_before_they_cost_anything(library: Server) -> None:
    path, body = native(aspectratio="16:9")
    told = ["aspectratio is not a field: did you mean aspect_ratio?"]
    quoted = await library.client.post(path, json=body | {"dryRun": True})
    assert quoted.json()["dryRun"]["warnings"] == told
    drawn = await post(library, (path, body))
    assert drawn.json()["aiRecord"]["aiRecordDetail"]["responseObject"]["warnings"] == told
    assert "aspectratio" in (await post(library, replicate(aspectratio="16:9"))).json()["logs"]
    assert (await post(library, openai(aspectratio="16:9", user="me"))).json()["warnings"] == told
    assert (await post(library, huggingface(aspectratio="16:9"))).headers["x-schnell-warnings"] == told[0]


async def test_sides_off_the_grid_are_drawn_as_each_original_draws_them(library: Server) -> None:
    custom: dict[str, Any] = {"aspect_ratio": "custom", "width": 1000, "height": 520}
    for asked, size in (
        (replicate(**custom), (1008, 528)),
        (huggingface(width=1000, height=520), (992, 512)),
        (huggingface(target_size={"width": 1000, "height": 520}), (992, 512)),
        (automatic1111(width="1000", height="520"), (992, 512)),
        (openai(size="1008x528"), (1008, 528)),
    ):
        await post(library, asked)
        assert library.runner.jobs[-1].spec.size == size, asked
    for asked in (native(**custom), openai(size="1000x520")):
        assert (await library.client.post(asked[0], json=asked[1])).status_code == 400
