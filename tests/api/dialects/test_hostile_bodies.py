"""Bodies that no client means to send: each dialect refuses them in its own words, and nothing is drawn."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from servers import Server, run_server

Problem = Callable[[Any], bool]
MODEL = "black-forest-labs/flux-schnell-lora"


def is_openai(body: Any) -> bool:
    return set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}


def is_replicate(body: Any) -> bool:
    return {"title", "detail", "status"} <= set(body)


def is_a1111(body: Any) -> bool:
    return {"error", "detail", "body", "errors"} == set(body)


def is_huggingface(body: Any) -> bool:
    return set(body) == {"error"} and isinstance(body["error"], str)


DIALECTS: dict[str, tuple[str, Problem, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "openai": ("/v1/images/generations", is_openai, lambda values: {"model": MODEL} | values),
    "replicate": ("/v1/predictions", is_replicate, lambda values: {"version": MODEL, "input": values}),
    "replicate by model": (f"/v1/models/{MODEL}/predictions", is_replicate, lambda values: {"input": values}),
    "automatic1111": ("/sdapi/v1/txt2img", is_a1111, lambda values: values),
    "huggingface": (
        f"/models/{MODEL}",
        is_huggingface,
        lambda values: {"inputs": values.get("prompt"), "parameters": values},
    ),
}
NO_OBJECTS = [
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"null",
    b"7",
    b"\xff\xfe",
    b'{"prompt": NaN}',
    b'{"prompt": "\\ud800"}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"n": ' + b"9" * 10_000 + b"}",
]
WRONG_VALUES: list[dict[str, Any]] = [
    {},
    {"prompt": None},
    {"prompt": ""},
    {"prompt": " \n\t"},
    {"prompt": 7},
    {"prompt": ["a"]},
    {"prompt": {"a": 1}},
    {"prompt": "a\0b"},
    {"prompt": "x" * 100_000},
    {"prompt": "a", "seed": "seven"},
    {"prompt": "a", "seed": 1.5},
    {"prompt": "a", "seed": True},
    {"prompt": "a", "seed": 1e300},
    {"prompt": "a", "loras": "a"},
    {"prompt": "a", "loras": [7]},
    {"prompt": "a", "loras": [{"path": ["a"]}]},
    {"prompt": "a", "loras": [{"scale": 1}]},
    {"prompt": "a", "loras": [{"path": "black-light", "scale": 1e300}]},
    {"prompt": "a", "loras": [{"path": "black-light"}] * 9},
    {"prompt": "a", "loras": [{"path": "black-light"}] * 10_000},
    {"prompt": "a", "loras": [{"path": "no-such-lora"}]},
    {"prompt": "a", "loras": [{"path": "x" * 100_000}]},
    {"prompt": "a", "loras": {"path": "black-light"}},
    {"prompt": "a", "loras": [None]},
    {"prompt": "a", "loras": [["black-light"]]},
    {"prompt": "a", "loras": [{"path": "black-light", "scale": True}]},
    {"prompt": "a", "loras": [{"path": "black-light", "scale": "1"}]},
    {"prompt": "a", "loras": [{"path": "black-light", "scale": 10**400}]},
    {"prompt": "a", "loras": ["black\0light"]},
    {"prompt": "a", "loras": ["\u202eblack-light"]},
    {"prompt": "a", "loras": ["https://[::1"]},
    {"prompt": "a", "loras": ["https://me:secret@x.org/a.safetensors"]},
    {"prompt": "a", "lora_weights": "black-light", "loras": ["black-light"] * 8},
    {"prompt": "a", "width": "wide", "height": [], "size": {"a": 1}, "megapixels": "9"},
]
#: What stands after the colon of a model id and can be no LoRA.
NO_LORAS = (
    "@",
    "@0.5",
    "a@nan",
    "a@1e5",
    "a@@1",
    "a:b",
    ":a",
    "\u202ea",
    "\u0433@0.5",
    "../a",
    "https://[::1",
    "x" * 5000,
)
each_dialect = pytest.mark.parametrize("dialect", DIALECTS)


# none of these changes anything on the server: one is enough for all of them
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    async with run_server(tmp_path_factory.mktemp("server")) as running:
        yield running


async def assert_refused(server: Server, dialect: str, statuses: set[int], **request: Any) -> None:
    path, is_shape, _ = DIALECTS[dialect]
    answer = await server.client.post(path, **request)
    assert answer.status_code in statuses, answer.text
    assert is_shape(answer.json()), answer.text
    assert server.runner.jobs == []
    assert (await server.client.get("/api/features")).json()["aiRecords"] == []


@each_dialect
async def test_what_is_no_json_object_is_refused(server: Server, dialect: str) -> None:
    for content in NO_OBJECTS:
        await assert_refused(server, dialect, {400, 422}, content=content)


@each_dialect
async def test_a_body_that_is_too_large_is_refused(server: Server, dialect: str) -> None:
    await assert_refused(server, dialect, {413}, content=b" " * 2_000_000)


@each_dialect
async def test_a_wrong_value_is_refused(server: Server, dialect: str) -> None:
    for values in WRONG_VALUES:
        await assert_refused(server, dialect, {400, 422}, json=DIALECTS[dialect][2](values))


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("openai", {"prompt": "a", "size": "0x0"}),
        ("openai", {"prompt": "a", "size": "99999x99999"}),
        ("openai", {"prompt": "a", "size": 7}),
        ("openai", {"prompt": "a", "response_format": "tiff"}),
        ("openai", {"prompt": "a", "quality": "best"}),
        ("openai", {"prompt": "a", "stream": "yes"}),
        ("openai", {"prompt": "a", "partial_images": 4}),
        ("openai", {"prompt": "a", "output_format": "gif"}),
        ("openai", {"prompt": "a", "output_format": ["png"]}),
        ("openai", {"prompt": "a", "model": 7}),
        ("replicate", {"input": {"prompt": "a"}}),
        ("replicate", {"version": 7, "input": {"prompt": "a"}}),
        ("replicate", {"version": MODEL, "input": "a"}),
        ("replicate", {"version": MODEL, "input": {"prompt": "a", "aspect_ratio": ["1:1"], "megapixels": [1]}}),
        ("replicate", {"version": MODEL, "input": {"prompt": "a", "aspect_ratio": "21:9", "megapixels": []}}),
        ("replicate", {"version": MODEL, "input": {"prompt": "a"}, "webhook": 7}),
        ("replicate", {"version": MODEL, "input": {"prompt": "a"}, "webhook": "http://[::1"}),
        ("replicate", {"version": MODEL, "input": {"prompt": "a"}, "webhook_events_filter": ["all"]}),
        ("replicate", {"version": MODEL, "input": {"prompt": "a"}, "webhook_events_filter": [[]]}),
        ("openai", {"prompt": "a", "model": "flux-schnell-lora:no-such-lora"}),
        ("openai", {"prompt": "a", "model": "flux-schnell-lora:black-light@9"}),
        ("openai", {"prompt": "a", "model": "flux-schnell-lora:../../etc/passwd"}),
        ("replicate", {"version": MODEL + ":black-light@9", "input": {"prompt": "a"}}),
        ("replicate", {"version": MODEL, "input": {"prompt": "a"}, "webhook_completed": 7}),
        ("replicate", {"version": MODEL, "input": {"prompt": "a"}, "webhook_completed": "http://[::1"}),
        ("huggingface", {"inputs": "a", "parameters": {"target_size": 7}}),
        ("huggingface", {"inputs": "a", "parameters": {"target_size": {"width": "wide"}}}),
        ("automatic1111", {"prompt": "a <lyco:no-such-lora:1>"}),
        ("automatic1111", {"prompt": "a", "width": "1" * 400}),
        ("automatic1111", {"prompt": "a", "steps": "many"}),
        ("automatic1111", {"prompt": "a", "batch_size": "x"}),
        ("automatic1111", {"prompt": "a", "override_settings": []}),
        ("automatic1111", {"prompt": "a", "override_settings": {"sd_model_checkpoint": 7}}),
        ("automatic1111", {"prompt": "<lora:x:1>"}),
        ("automatic1111", {"prompt": "a", "send_images": "no"}),
        ("huggingface", {"inputs": "a", "parameters": []}),
        ("huggingface", {"inputs": "a", "parameters": {"num_inference_steps": 50}}),
        ("huggingface", {"inputs": "a", "parameters": {"width": 100}}),
        ("huggingface", {"inputs": ["a"]}),
    ],
)
async def test_a_dialects_own_fields_are_checked(server: Server, dialect: str, body: dict[str, Any]) -> None:
    await assert_refused(server, dialect, {400, 422}, json=body)


@each_dialect
async def test_a_missing_and_a_wrong_key_are_401(server: Server, dialect: str) -> None:
    body = DIALECTS[dialect][2]({"prompt": "a"})
    await assert_refused(server, dialect, {401}, json=body, headers={"API-KEY": "wrong"})
    await assert_refused(server, dialect, {401}, json=body, headers={"API-KEY": "", "Authorization": "Basic !"})


async def test_an_unknown_model_is_refused_in_each_dialects_words(server: Server) -> None:
    await assert_refused(server, "openai", {404}, json={"prompt": "a", "model": "gpt-image-1"})
    await assert_refused(server, "replicate", {404}, json={"version": "a/b", "input": {"prompt": "a"}})
    await assert_refused(server, "replicate", {404}, json={"version": "f" * 64, "input": {"prompt": "a"}})
    checkpoint = {"prompt": "a", "override_settings": {"sd_model_checkpoint": "sd15"}}
    await assert_refused(server, "automatic1111", {404}, json=checkpoint)
    answer = await server.client.post("/models/stabilityai/sdxl", json={"inputs": "a"})
    assert (answer.status_code, is_huggingface(answer.json())) == (404, True)


@pytest.mark.parametrize(
    ("path", "is_shape"),
    [
        ("/v1/predictions/nobody", is_replicate),
        ("/v1/predictions/%00", is_replicate),
        ("/v1/predictions/00000000-0000-0000-0000-000000000000", is_replicate),
        ("/v1/predictions?cursor=x", is_replicate),
        ("/v1/models/nobody/nothing", lambda body: is_replicate(body) and "error" in body),
        ("/v1/models/nobody/nothing/versions", is_replicate),
        (f"/v1/models/{MODEL}/versions/1", is_replicate),
        ("/v1/nothing", lambda body: is_replicate(body) and "error" in body),
        ("/sdapi/v1/nothing", is_a1111),
    ],
)
async def test_what_is_not_there_is_told_in_the_dialects_shape(server: Server, path: str, is_shape: Problem) -> None:
    answer = await server.client.get(path)
    assert 400 <= answer.status_code < 500
    assert is_shape(answer.json())


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (
            "/api/features",
            lambda id_: {"type": "IMAGE_GENERATOR", "model": id_, "promptObject": {"prompt": "a"}},
            "model",
        ),
        ("/v1/images/generations", lambda id_: {"model": id_, "prompt": "a"}, "model"),
        ("/v1/predictions", lambda id_: {"version": id_, "input": {"prompt": "a"}}, "version"),
        (
            "/sdapi/v1/txt2img",
            lambda id_: {"prompt": "a", "override_settings": {"sd_model_checkpoint": id_}},
            "override_settings",
        ),
        ("/sdapi/v1/options", lambda id_: {"sd_model_checkpoint": id_}, "sd_model_checkpoint"),
    ],
)
async def test_a_model_id_that_names_no_lora_is_refused_where_it_stands(
    server: Server, path: str, body: Callable[[str], dict[str, Any]], field: str
) -> None:
    for text in NO_LORAS:
        answer = await server.client.post(path, json=body(f"flux-schnell-lora:{text}"))
        assert answer.status_code in {400, 422}, (text, answer.text)
        assert field in answer.text, (text, answer.text)
    assert server.runner.jobs == []


async def test_a_format_that_nobody_has_is_not_acceptable(server: Server) -> None:
    answer = await server.client.post(f"/models/{MODEL}", json={"inputs": "a"}, headers={"Accept": "image/bmp"})
    assert (answer.status_code, is_huggingface(answer.json())) == (406, True)
