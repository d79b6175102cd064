"""Each refusal is the exception that openai-python has for it, in its synchronous and its asynchronous client."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from client_service import MODEL, PROMPT, Service, run_service
from counts import SOAK
from s3_servers import ACCESS_KEY, BUCKET, SECRET_KEY, run_nanio

ASK: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "size": "256x256", "extra_body": {"num_inference_steps": 1}}
Generate = Callable[..., Any]


def generate(service: Service, *, key: str | None = None, max_retries: int = 0, **values: Any) -> Any:
    with OpenAI(base_url=f"{service.url}/v1", api_key=key or service.key, max_retries=max_retries) as client:
        answer = client.images.generate(**ASK | values)
        return list(answer) if values.get("stream") else answer


def generate_async(service: Service, *, key: str | None = None, max_retries: int = 0, **values: Any) -> Any:
    async def run() -> Any:
        address = f"{service.url}/v1"
        async with AsyncOpenAI(base_url=address, api_key=key or service.key, max_retries=max_retries) as client:
            answer = await client.images.generate(**ASK | values)
            return [event async for event in answer] if values.get("stream") else answer

    return asyncio.run(run())


both = pytest.mark.parametrize("ask", [generate, generate_async], ids=["sync", "async"])


def refusal(error: type[openai.APIStatusError], ask: Generate, *arguments: Any, **values: Any) -> openai.APIStatusError:
    with pytest.raises(error) as raised:
        ask(*arguments, **values)
    assert type(raised.value) is error
    return raised.value


@both
def test_a_wrong_value_is_a_bad_request(ask: Generate, service: Service) -> None:
    error = refusal(openai.BadRequestError, ask, service, n=99)
    assert (error.status_code, error.type, error.param) == (400, "invalid_request_error", "n")
    assert error.response.headers["x-should-retry"] == "false"


@both
def test_a_wrong_key_is_an_authentication_error(ask: Generate, service: Service) -> None:
    error = refusal(openai.AuthenticationError, ask, service, key="wrong")
    assert (error.status_code, error.code) == (401, "invalid_api_key")
    assert error.response.headers["x-should-retry"] == "false"


@both
def test_a_key_without_the_scope_is_a_permission_error(ask: Generate, service: Service) -> None:
    error = refusal(openai.PermissionDeniedError, ask, service, key=service.make_key(scopes=["read"]))
    assert (error.status_code, error.code) == (403, "forbidden")


@both
def test_an_unknown_model_is_not_found(ask: Generate, service: Service) -> None:
    error = refusal(openai.NotFoundError, ask, service, model="gpt-image-1")
    assert (error.status_code, error.code) == (404, "model_not_found")


@both
def test_another_body_under_the_same_idempotency_key_is_a_conflict_that_is_not_tried_again(
    ask: Generate, service: Service
) -> None:
    key = service.make_key()
    headers = {"Idempotency-Key": "once"}
    ask(service, key=key, extra_headers=headers)
    error = refusal(openai.ConflictError, ask, service, key=key, extra_headers=headers, n=2, max_retries=3)
    assert (error.status_code, error.code) == (409, "idempotency_conflict")
    assert error.response.headers["x-should-retry"] == "false"


@both
def test_an_exhausted_rate_and_an_exhausted_budget_are_rate_limit_errors(ask: Generate, service: Service) -> None:
    limited = service.make_key(rateLimit="1/hour")
    ask(service, key=limited)
    error = refusal(openai.RateLimitError, ask, service, key=limited)
    assert (error.status_code, error.type, error.code) == (429, "requests", "rate_limit_exceeded")
    assert int(error.response.headers["retry-after"]) > 1
    poor = service.make_key(team={"creditLimit": 1})
    error = refusal(openai.RateLimitError, ask, service, key=poor, max_retries=3)
    assert (error.type, error.code) == ("insufficient_quota", "insufficient_quota")
    assert error.response.headers["x-should-retry"] == "false"


@pytest.mark.skipif(not SOAK, reason="waits for the client's own pauses: make soak")
def test_a_bucket_that_is_gone_is_an_internal_server_error_that_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    bucket = run_nanio(tmp_path / "bucket")
    with bucket as s3:
        settings = {"assets_url": f"s3://{BUCKET}", "s3_endpoint": s3.endpoint}
        service = run_service(tmp_path, **settings)
        found = service.__enter__()
    try:
        for ask in (generate, generate_async):
            error = refusal(openai.InternalServerError, ask, found, max_retries=1)
            assert (error.status_code, error.type, error.code) == (503, "server_error", "storage_failed")
            assert error.response.headers["x-should-retry"] == "true"
            with pytest.raises(openai.APIError) as raised:
                ask(found, stream=True)
            assert (type(raised.value), raised.value.code) == (openai.APIError, "storage_failed")
        with found.client() as client:
            records = client.get("/api/features").json()["aiRecords"]
            session = client.get("/api/session").json()
        assert [each["status"] for each in records] == ["FAILURE"] * 6
        assert session["usedCredit"] == 0
    finally:
        service.__exit__(None, None, None)


@both
def test_a_server_that_is_not_there_is_a_connection_error(ask: Generate) -> None:
    with pytest.raises(openai.APIConnectionError):
        ask(Service("http://127.0.0.1:9"))
