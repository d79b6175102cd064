"""The OpenAPI document: the pieces that routes describe their bodies and answers with, and what keeps it true.

Bodies that routes read by hand (`fields.Fields`) are described by hand too, with these pieces; FastAPI derives the rest
from the routes' annotations.
"""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import compile_path

# Schemas

TEXT: Final = {"type": "string"}
TEXTS: Final = {"type": "array", "items": TEXT}
TEXT_OR_NULL: Final = {"type": ["string", "null"]}
INTEGER: Final = {"type": "integer"}
INTEGER_OR_NULL: Final = {"type": ["integer", "null"]}


def object_of(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """The schema of an object. Every property is required, or only those in `required` where it is given."""
    return {"type": "object", "properties": properties, "required": list(required or properties)}


def example_of(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    """`schema` with an example."""
    return schema | {"examples": [example]}


_ERROR: Final = example_of(
    object_of({"errorCode": TEXT, "message": TEXT, "details": TEXT}, "errorCode", "message"),
    {
        "errorCode": "INVALID_FIELD",
        "message": "seed: must be 0-4294967295, got -1",
        "details": '[{"field": "seed", "message": "must be 0-4294967295, got -1"}]',
    },
)

# Answers

_ERRORS: Final = {
    400: "A field is missing or wrong (MISSING_REQUIRED_FIELDS, INVALID_FIELD, INVALID_BODY, UNSUPPORTED_MODEL), or "
    "every picture was flagged (NSFW_CONTENT), or it needs more memory than there is (PICTURE_TOO_LARGE)",
    401: "No API key, or none that is good (HTTP_EXCEPTION)",
    402: "Too few credits left (INSUFFICIENT_CREDITS)",
    403: "The key may not do this (FORBIDDEN)",
    404: "There is no such thing, or it is another team's (NOT_FOUND)",
    409: "Another body had this Idempotency-Key (IDEMPOTENCY_CONFLICT), or the generation was cancelled (CANCELLED)",
    413: "The body is too large (BODY_TOO_LARGE)",
    429: "Too many requests (RATE_LIMITED), or too many of the team's are waiting (TEAM_QUEUE_FULL)",
    500: "The picture could not be drawn (GENERATION_FAILED)",
    503: "The queue is full (QUEUE_FULL), there is no memory for the picture just now (MODEL_BUSY), the server stops, "
    "or its store is away (STORAGE_FAILED)",
}


def json_answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """One entry of a route's `responses`: a JSON body of this schema."""
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def error_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The entries of a route's `responses` for these error statuses."""
    return {status: json_answer(_ERRORS[status], _ERROR) for status in statuses}


# Routes of other services' APIs, whose bodies are described by what they look like


def schema_of(example: Any) -> dict[str, Any]:
    """A schema that `example` and its like follow: types and names, none of which is required."""
    if isinstance(example, dict):
        return {"type": "object", "properties": {name: schema_of(value) for name, value in example.items()}}
    if isinstance(example, list):
        return {"type": "array", "items": schema_of(example[0]) if example else {}}
    # null stands for a value that may be there another time, of a type that the example does not tell
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {} if example is None else {"type": kinds[type(example)]}


def described_route(
    answer: Any, body: dict[str, Any] | None = None, errors: Mapping[int, Any] | None = None, *, status: int = 200
) -> dict[str, Any]:
    """Keyword arguments of a route decorator: its JSON answer, body and errors, each as an example.

    `errors` holds an example for each status.
    """
    examples = {status: ("The answer", answer)}
    examples |= {code: ("An error", example) for code, example in (errors or {}).items()}
    responses = {
        code: json_answer(text, example_of(schema_of(example), example)) for code, (text, example) in examples.items()
    }
    options: dict[str, Any] = {"responses": responses, "status_code": status}
    if body is not None:
        content = {"application/json": {"schema": schema_of(body), "examples": {"an example": {"value": body}}}}
        options["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return options


# Keys

_SCHEMES: Final = {
    "apiKey": {"type": "apiKey", "in": "header", "name": "API-KEY"},
    "bearer": {"type": "http", "scheme": "bearer"},
}
#: `openapi_extra` of a route that takes an API key, in either of the two recommended forms.
KEYED: Final[dict[str, Any]] = {"security": [{name: []} for name in _SCHEMES]}


class KeyedRoute(APIRoute):
    """A route that takes an API key, as `KEYED` says. It checks nothing: that is what the route's `caller` is for.

    FastAPI's own way of saying so is a dependency for each form of key, and both would be run for every request.
    """

    def __init__(self, *arguments: Any, openapi_extra: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(*arguments, openapi_extra=KEYED | (openapi_extra or {}), **options)


def describe_keys(app: FastAPI) -> None:
    """Say in the document of `app` what the forms of keys are that `KEYED` names."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document.setdefault("components", {})["securitySchemes"] = _SCHEMES
        return document

    app.openapi = openapi  # type: ignore[method-assign]


# The whole document

_METHODS: Final = {"get", "post", "put", "patch", "delete"}


def remove_unsent_statuses(app: FastAPI) -> None:
    """Take 422, which FastAPI describes by itself, out of the document of `app`: wrong values are answered with 400."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        for path in document["paths"].values():
            for operation in path.values():
                responses = operation.get("responses", {})
                # FastAPI's own; some dialects answer 422, and say so themselves
                if "HTTPValidationError" in str(responses.get("422")):
                    responses.pop("422")
        schemas = document.get("components", {}).get("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def allowed_methods(app: FastAPI, path: str) -> set[str]:
    """The methods, in capitals, that the documented routes of `app` answer on this path."""
    matches = [each for each in app.openapi()["paths"].items() if compile_path(each[0])[0].match(path)]
    # of templates that match, the one with the fewest placeholders is meant: /api/loras/inspect, not /api/loras/{name}
    fewest = min((template.count("{") for template, _ in matches), default=0)
    found = (operations for template, operations in matches if template.count("{") == fewest)
    methods = {method.upper() for operations in found for method in operations if method in _METHODS}
    # HEAD is answered wherever GET is
    return methods | ({"HEAD"} if "GET" in methods else set())
