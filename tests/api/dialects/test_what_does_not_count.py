"""What a request says in vain is named in the answer, and what cannot be meant is refused, in each dialect's words."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from servers import BODY, Server, run_server

MODEL = "flux-schnell-lora"
NATIVE = "/api/features"
OPENAI = "/v1/images/generations"
REPLICATE = f"/v1/models/schnell/{MODEL}/predictions"
AUTOMATIC1111 = "/sdapi/v1/txt2img"
HUGGING_FACE = f"/models/{MODEL}"
BODIES: dict[str, dict[str, Any]] = {
    NATIVE: BODY,
    OPENAI: {"prompt": "a red apple"},
    REPLICATE: {"input": {"prompt": "a red apple"}},
    AUTOMATIC1111: {"prompt": "a red apple"},
    HUGGING_FACE: {"inputs": "a red apple"},
}

pytestmark = pytest.mark.asyncio(loop_scope="module")


# every test draws with the same server, and looks at its own answers only
@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    async with run_server(tmp_path_factory.mktemp("server")) as running:
        yield running


def warnings_of(path: str, answer: httpx.Response) -> list[str]:
    assert answer.is_success, answer.text
    if path == HUGGING_FACE:
        told = answer.headers.get("x-schnell-warnings", "")
        return [told] if told else []
    body = answer.json()
    if path == NATIVE:
        return list(body["aiRecord"]["aiRecordDetail"]["responseObject"]["warnings"])
    if path == REPLICATE:
        return [line.removeprefix("warning: ") for line in body["logs"].splitlines() if line.startswith("warning: ")]
    return list(json.loads(body["info"])["notes"] if path == AUTOMATIC1111 else body["warnings"])


async def warned(server: Server, path: str, **values: Any) -> list[str]:
    answer = await server.client.post(path, json=BODIES[path] | values, headers={"Prefer": "wait"})
    return warnings_of(path, answer)


@pytest.mark.parametrize("path", BODIES)
async def test_a_field_that_is_none_is_named_and_those_that_are_known_are_not(server: Server, path: str) -> None:
    assert await warned(server, path) == []
    assert await warned(server, path, qwertz=1) == ["qwertz is not a field; it was ignored"]


@pytest.mark.parametrize(
    ("path", "values", "told"),
    [
        (NATIVE, {"dry_run": True}, "dry_run is not a field: did you mean dryRun?"),
        (NATIVE, {"num_outputs": 4}, "num_outputs belongs inside promptObject; here it was ignored"),
        (NATIVE, {"webhok": "https://x.org"}, "webhok is not a field: did you mean webhook?"),
        (REPLICATE, {"seed": 4}, "seed belongs inside input; here it was ignored"),
        (REPLICATE, {"webhok": "https://x.org"}, "webhok is not a field: did you mean webhook?"),
        (HUGGING_FACE, {"seed": 4}, "seed belongs inside parameters; here it was ignored"),
        (OPENAI, {"batch_size": 2}, "batch_size is not a field; it was ignored"),
        (AUTOMATIC1111, {"sampler": "Euler"}, "sampler is not a field: did you mean sampler_name?"),
    ],
)
async def test_a_field_in_the_wrong_place_or_spelt_wrong_is_named_with_the_right_one(
    server: Server, path: str, values: dict[str, Any], told: str
) -> None:
    assert await warned(server, path, **values) == [told]


async def test_what_the_web_uis_clients_send_to_every_server_is_no_unknown_field(server: Server) -> None:
    sent = {
        "override_settings": {},
        "override_settings_restore_afterwards": True,
        "alwayson_scripts": {},
        "script_args": [],
        "hr_scale": 2,
        "denoising_strength": 0.7,
        "save_images": True,
        "clip_skip": 1,
        "adetailer": None,
        "eta": 0,
    }
    assert await warned(server, AUTOMATIC1111, **sent) == []


async def test_a_size_that_does_not_count_is_named(server: Server) -> None:
    prompt = {"prompt": "a red apple"}
    ignored = "was ignored: aspect_ratio is 1:1, and sides count with custom"
    square = {"aspect_ratio": "1:1", "width": 512, "height": 512}
    both = [f"width {ignored}", f"height {ignored}"]
    assert await warned(server, NATIVE, promptObject=prompt | square) == both
    assert await warned(server, REPLICATE, input=prompt | square) == both
    custom = prompt | {"width": 512, "height": 512, "megapixels": "0.25"}
    assert await warned(server, NATIVE, promptObject=custom) == ["megapixels was ignored: width and height count"]
    assert await warned(server, NATIVE, promptObject=custom | {"megapixels": 1}) == []
    assert await warned(server, REPLICATE, input=prompt | {"aspect_ratio": "4:3", "megapixels": "0.25"}) == []
    wide = {"aspect_ratio": "16:9"}
    assert await warned(server, OPENAI, size="256x256", **wide) == ["aspect_ratio was ignored: size counts"]
    assert await warned(server, OPENAI, size="1792x1024", **wide) == []
    assert await warned(server, OPENAI, size="auto", **wide) == []
    target = {"target_size": {"width": 512, "height": 256}}
    assert await warned(server, HUGGING_FACE, parameters=target | {"width": None, "height": 256}) == []
    assert server.runner.jobs[-1].spec.size == (512, 256)
    told = await warned(server, HUGGING_FACE, parameters=target | {"width": 256})
    assert told == ["target_size.width was ignored: width counts"]
    told = await warned(server, HUGGING_FACE, parameters={"width": 512, "height": 512} | wide)
    assert told == ["aspect_ratio was ignored: width and height count"]


@pytest.mark.parametrize(("given", "missing"), [("width", "height"), ("height", "width")])
async def test_a_target_size_has_both_sides(server: Server, given: str, missing: str) -> None:
    body = BODIES[HUGGING_FACE] | {"parameters": {"target_size": {given: 256}}}
    answer = await server.client.post(HUGGING_FACE, json=body)
    told = f"parameters.target_size.{missing}: is required with {given}"
    assert (answer.status_code, answer.json()) == (422, {"error": told})


@pytest.mark.parametrize("body", [{}, {"inputs": ""}, {"inputs": None}, {"inputs": 7}])
async def test_hugging_faces_clients_get_422_for_values_that_are_missing_or_wrong(
    server: Server, body: dict[str, Any]
) -> None:
    assert (await server.client.post(HUGGING_FACE, json=body)).status_code == 422


async def test_every_ratio_that_replicates_model_draws_is_named_to_who_sends_another(server: Server) -> None:
    refused = await server.client.post(REPLICATE, json={"input": {"prompt": "a", "aspect_ratio": "7:3"}})
    (problem,) = refused.json()["invalid_fields"]
    schema = (await server.client.get(f"/v1/models/schnell/{MODEL}")).json()["latest_version"]["openapi_schema"]
    ratios = schema["components"]["schemas"]["Input"]["properties"]["aspect_ratio"]["enum"]
    assert len(ratios) == 12
    assert problem["description"] == f"must be one of {', '.join(ratios)}, got '7:3'"


@pytest.mark.parametrize(
    ("path", "example"),
    [
        (NATIVE, '{"type": "IMAGE_GENERATOR", …}'),
        (OPENAI, '{"prompt": …}'),
        (REPLICATE, '{"input": …}'),
        ("/v1/predictions", '{"version": …, "input": …}'),
        (AUTOMATIC1111, '{"prompt": …}'),
        ("/sdapi/v1/options", '{"sd_model_checkpoint": …}'),
        (HUGGING_FACE, '{"inputs": …}'),
        ("/api/loras", '{"source": …}'),
    ],
)
async def test_a_body_that_is_no_object_is_refused_with_an_example_of_its_own_api(
    server: Server, path: str, example: str
) -> None:
    answer = await server.client.post(path, json=[])
    told = json.dumps(f"the body must be a JSON object, such as {example}", ensure_ascii=False)
    assert told in answer.text


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("name", ["edits", "variations"])
async def test_openais_paths_that_are_not_served_name_the_one_that_is(server: Server, method: str, name: str) -> None:
    answer = await server.client.request(method, f"/v1/images/{name}")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "not_found")
    assert error["message"] == "this path is not served here; /v1/images/generations is"


async def test_only_a_pictures_name_is_a_picture_by_its_key(server: Server) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert (await server.client.request(method, "/v1/images/more")).status_code == 404
    wrong = await server.client.get(OPENAI)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    key = "development/images/2026_11_25_15_09_24_339_000001.webp"
    assert (await server.client.post(f"/{key}")).status_code == 405


async def test_a_scale_after_a_models_name_is_in_the_range_of_its_apis_fields(server: Server) -> None:
    named = await server.client.post(NATIVE, json=BODY | {"model": f"{MODEL}:black-light@-0.5"})
    assert named.json()["message"] == "model: the scale after @ must be 0-3, got -0.5"
    field = await server.client.post(
        NATIVE, json=BODY | {"promptObject": {"prompt": "a", "lora_weights": "black-light", "lora_scale": -0.5}}
    )
    assert field.json()["message"] == "lora_scale: must be 0-3, got -0.5"
    for scale, told in (("-0.5", "black-light"), ("-1.5", "the scale after @ must be -1 to 3, got -1.5")):
        answer = await server.client.post(OPENAI, json=BODIES[OPENAI] | {"model": f"{MODEL}:black-light@{scale}"})
        assert told in answer.text
