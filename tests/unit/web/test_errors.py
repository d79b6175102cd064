import json

import httpx
import pytest
from fastapi import FastAPI

from schnell.errors import (
    FieldError,
    FieldProblem,
    InvalidFieldError,
    NotFoundError,
    RateLimitedError,
    SchnellError,
    ServerBusyError,
    UnauthorizedError,
)
from schnell.web.errors import DialectErrors, error_headers, flat_error, install_error_handlers

WRONG = InvalidFieldError(FieldProblem("seed", "must be 0-9"), FieldProblem("size", "is odd"))


def shape_named(name: str) -> DialectErrors:
    return DialectErrors((f"/{name}",), lambda error, status: {name: [error.code, status]}, dialect=name)


def build_client(*dialects: DialectErrors) -> httpx.AsyncClient:
    app = FastAPI()
    install_error_handlers(app, dialects)

    @app.get("/{path:path}")
    def fail(path: str) -> None:
        if path.endswith("bug"):
            raise RuntimeError("insides")
        raise NotFoundError(f"no {path}")

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def test_the_native_shape_lists_wrong_fields_as_json_in_a_string() -> None:
    body = flat_error(WRONG, 400)
    assert (body["errorCode"], body["message"]) == ("INVALID_FIELD", "seed: must be 0-9; size: is odd")
    assert json.loads(body["details"]) == [
        {"field": "seed", "message": "must be 0-9"},
        {"field": "size", "message": "is odd"},
    ]
    assert "details" not in flat_error(NotFoundError("no"), 404)


def test_the_nearest_class_decides_about_the_status() -> None:
    dialect = DialectErrors(("/x",), flat_error, statuses={SchnellError: 418, FieldError: 422})
    assert dialect.status_of(WRONG) == 422
    assert dialect.status_of(NotFoundError("no")) == 418
    assert DialectErrors(("/x",), flat_error).status_of(NotFoundError("no")) == 404


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (NotFoundError("no"), {"x-should-retry": "false"}),
        (ServerBusyError("full", 0.2), {"x-should-retry": "true", "Retry-After": "1"}),
        (ServerBusyError("full", 2.1), {"x-should-retry": "true", "Retry-After": "3"}),
        (UnauthorizedError("who?"), {"x-should-retry": "false", "WWW-Authenticate": "Basic"}),
        (
            RateLimitedError("slow down", 60, 9),
            {
                "x-should-retry": "true",
                "Retry-After": "9",
                "ratelimit-limit": "60",
                "ratelimit-remaining": "0",
                "ratelimit-reset": "9",
            },
        ),
    ],
)
def test_headers_say_when_to_retry_and_how_to_authenticate(error: SchnellError, headers: dict[str, str]) -> None:
    dialect = DialectErrors(("/x",), flat_error, dialect="replicate", challenge="Basic")
    assert error_headers(error, dialect) == headers


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/a/x", {"a": ["NOT_FOUND", 404]}),
        ("/a/b/x", {"a/b": ["NOT_FOUND", 404]}),
        ("/c", {"errorCode": "NOT_FOUND", "message": "no c"}),
    ],
)
async def test_the_longest_prefix_decides_about_the_shape(path: str, body: object) -> None:
    async with build_client(shape_named("a"), shape_named("a/b")) as client:
        assert (await client.get(path)).json() == body


async def test_an_unexpected_error_is_a_500_that_shows_no_insides() -> None:
    async with build_client(shape_named("a")) as client:
        plain, shaped = await client.get("/bug"), await client.get("/a/bug")
    assert (plain.status_code, plain.json()["errorCode"]) == (500, "UNKNOWN_ERROR")
    assert shaped.json() == {"a": ["UNKNOWN_ERROR", 500]}
    assert "insides" not in plain.text


async def test_a_method_that_no_route_has_is_answered_with_those_that_are_there() -> None:
    async with build_client() as client:
        answer = await client.post("/x")
    assert (answer.status_code, answer.json()["errorCode"], answer.headers["allow"]) == (
        405,
        "METHOD_NOT_ALLOWED",
        "GET, HEAD",
    )
