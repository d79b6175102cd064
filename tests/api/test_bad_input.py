import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from servers import BODY, KEY, Server, run_server

PROMPT = {"prompt": "a red apple"}


async def post(server: Server, body: Any) -> Any:
    return await server.client.post("/api/features", json=body)


# none of these changes anything on the server: one is enough for all of them
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    async with run_server(tmp_path_factory.mktemp("server")) as running:
        yield running


async def assert_nothing_happened(server: Server) -> None:
    assert server.runner.jobs == []
    assert (await server.client.get("/api/features")).json()["aiRecords"] == []
    assert (await server.client.get("/api/session")).json()["usedCredit"] == 0
    assert await server.services.store.list_keys() == []


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("prompt", {"prompt": "x" * 100_000}),
        ("prompt", {"prompt": 7}),
        ("prompt", {"prompt": "a\0b"}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 4294967296}),
        ("seed", {"seed": 1.5}),
        ("seed", {"seed": "7"}),
        ("seed", {"seed": True}),
        ("seed", {"seed": 1e300}),
        ("num_inference_steps", {"num_inference_steps": 0}),
        ("num_inference_steps", {"num_inference_steps": 5}),
        ("output_quality", {"output_quality": 101}),
        ("output_quality", {"output_quality": -1}),
        ("aspect_ratio", {"aspect_ratio": "7:3"}),
        ("aspect_ratio", {"aspect_ratio": 1}),
        ("width", {"aspect_ratio": "custom", "width": 255, "height": 512}),
        ("width", {"aspect_ratio": "custom", "width": 1441, "height": 512}),
        ("width", {"aspect_ratio": "custom", "width": 300.5, "height": 512}),
        ("height", {"aspect_ratio": "custom", "width": 512, "height": 300}),
        ("megapixels", {"megapixels": "2"}),
        ("megapixels", {"megapixels": 0.5}),
        ("megapixels", {"megapixels": True}),
        ("num_outputs", {"num_outputs": 5}),
        ("n", {"n": 0}),
        ("output_format", {"output_format": "gif"}),
        ("go_fast", {"go_fast": "yes"}),
        ("disable_safety_checker", {"disable_safety_checker": 1}),
        ("lora_scale", {"lora_scale": 3.1}),
        ("lora_scale", {"lora_scale": "1"}),
        ("lora_weights", {"lora_weights": ["a"]}),
    ],
)
async def test_a_wrong_value_is_refused_by_its_name(server: Server, field: str, values: dict[str, Any]) -> None:
    answer = await post(server, BODY | {"promptObject": PROMPT | values})
    assert answer.status_code == 400
    error = answer.json()
    assert list(error) == ["errorCode", "message", "details"]
    assert error["errorCode"] == "INVALID_FIELD"
    assert [each["field"] for each in json.loads(error["details"])] == [field]
    await assert_nothing_happened(server)


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (["type", "model", "promptObject"], {}),
        (["type"], {"model": BODY["model"], "promptObject": PROMPT}),
        (["prompt"], BODY | {"promptObject": {}}),
        (["prompt"], BODY | {"promptObject": {"prompt": None}}),
        (["prompt"], BODY | {"promptObject": {"prompt": ""}}),
        (["prompt"], BODY | {"promptObject": {"prompt": " \n\t"}}),
        (["height"], BODY | {"promptObject": PROMPT | {"width": 512}}),
    ],
)
async def test_a_missing_field_is_asked_for_by_its_name(server: Server, fields: list[str], body: Any) -> None:
    answer = await post(server, body)
    assert answer.status_code == 400
    assert answer.json()["errorCode"] == "MISSING_REQUIRED_FIELDS"
    assert [each["field"] for each in json.loads(answer.json()["details"])] == fields
    await assert_nothing_happened(server)


async def test_every_wrong_field_is_told_at_once(server: Server) -> None:
    answer = await post(server, BODY | {"promptObject": PROMPT | {"seed": -1, "go_fast": "x", "megapixels": "9"}})
    assert {each["field"] for each in json.loads(answer.json()["details"])} == {"seed", "go_fast", "megapixels"}


async def test_another_model_is_refused_in_the_known_words(server: Server) -> None:
    answer = await post(server, BODY | {"model": "dall-e-3"})
    assert answer.status_code == 400
    assert answer.json() == {
        "errorCode": "UNSUPPORTED_MODEL",
        "message": "Model dall-e-3 is not supported for feature IMAGE_GENERATOR",
    }


async def test_another_feature_is_refused_in_the_known_words(server: Server) -> None:
    answer = await post(server, BODY | {"type": "CHAT"})
    assert (answer.status_code, answer.json()["message"]) == (400, "Unsupported feature type: CHAT")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"[1, 2]",
        b'"text"',
        b"null",
        b"7",
        b"\xff\xfe",
        b'{"type": NaN}',
        b'{"a": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"n": ' + b"9" * 10_000 + b"}",
    ],
)
async def test_what_is_no_json_object_is_refused(server: Server, content: bytes) -> None:
    answer = await server.client.post("/api/features", content=content)
    assert answer.status_code == 400
    assert answer.json()["errorCode"] == "INVALID_BODY"
    await assert_nothing_happened(server)


async def test_half_a_character_is_named(server: Server) -> None:
    answer = await server.client.post("/api/features", content=b'{"promptObject": {"prompt": "caf\\ud83d"}}')
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "INVALID_BODY")
    assert "\\ud83d, half of a character" in answer.json()["message"]
    await assert_nothing_happened(server)


async def test_json_that_is_sent_as_a_form_is_told_what_is_missing(server: Server) -> None:
    answer = await server.client.post(
        "/api/results/0b9a0018-dff0-4901-8648-65aa0996a899/rating",
        content=b'{"rating": "GOOD"}',
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 400
    assert answer.json()["message"] == "body: must be a JSON object, sent with Content-Type: application/json"


async def test_a_body_of_50_megabytes_is_refused_without_being_held(server: Server) -> None:
    async def chunks() -> Any:
        for _ in range(50):
            yield b" " * 1_000_000

    for content in (b" " * 50_000_000, chunks()):
        answer = await server.client.post("/api/features", content=content)
        assert answer.status_code == 413
        assert answer.json()["errorCode"] == "BODY_TOO_LARGE"
    await assert_nothing_happened(server)


async def test_absurd_headers_are_refused(server: Server) -> None:
    answer = await server.client.get("/healthz", headers={"x-long": "x" * 40_000})
    assert answer.status_code == 431


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"API-KEY": "wrong"},
        {"API-KEY": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic ???"},
        {"Authorization": KEY},
    ],
)
async def test_a_wrong_or_missing_key_is_401(
    server: Server, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(server.client.headers, "API-KEY")
    answer = await server.client.post("/api/features", json=BODY, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["errorCode"] == "HTTP_EXCEPTION"
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert server.runner.jobs == []


async def test_unknown_paths_and_methods_have_flat_errors(server: Server) -> None:
    missing, wrong = await server.client.get("/nowhere"), await server.client.put("/api/features")
    assert (missing.status_code, missing.json()["errorCode"]) == (404, "NOT_FOUND")
    assert (wrong.status_code, wrong.json()["errorCode"]) == (405, "METHOD_NOT_ALLOWED")
    assert wrong.headers["allow"]


@pytest.mark.parametrize("path", ["/api/features", "/api/admin/teams"])
async def test_a_nul_is_refused_saying_why(server: Server, path: str) -> None:
    body = {"name": "a\0b"} if path.endswith("teams") else BODY | {"promptObject": {"prompt": "a\0b"}}
    answer = await server.client.post(path, json=body)
    assert answer.status_code == 400
    assert "must not hold the character NUL" in answer.text


@pytest.mark.parametrize(
    ("named", "status"),
    [("flux-schnell-lora:style@9", 422), ("flux-schnell-lora:nobody", 422), ("a\0b", 422), ("b" * 600, 422)],
)
async def test_a_prediction_names_the_version_that_is_wrong(server: Server, named: str, status: int) -> None:
    answer = await server.client.post("/v1/predictions", json={"version": named, "input": PROMPT})
    assert answer.status_code == status, answer.text
    assert [each["field"] for each in answer.json()["invalid_fields"]] == ["version"]
    await assert_nothing_happened(server)
