"""What the OpenAPI document is written with, and what keeps it true.

Routes describe their bodies and answers with the pieces below; what FastAPI adds by itself and this API does not do is
taken out of the document again.
"""

from typing import Any, Final

from fastapi import FastAPI
from starlette.routing import compile_path

TEXT: Final = {"type": "string"}
TEXTS: Final = {"type": "array", "items": TEXT}
TEXT_OR_NULL: Final = {"type": ["string", "null"]}
INTEGER: Final = {"type": "integer"}
INTEGER_OR_NULL: Final = {"type": ["integer", "null"]}


def object_of(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """The schema of an object; every property is required unless some are named."""
    return {"type": "object", "properties": properties, "required": list(required or properties)}


def example_of(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    """The schema with an example of it."""
    return schema | {"examples": [example]}


ERROR: Final = example_of(
    object_of({"errorCode": TEXT, "message": TEXT, "details": TEXT}, "errorCode", "message"),
    {
        "errorCode": "INVALID_FIELD",
        "message": "seed: must be 0-4294967295, got -1",
        "details": '[{"field": "seed", "message": "must be 0-4294967295, got -1"}]',
    },
)


def json_answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """One entry of a route's `responses`."""
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_ERRORS: Final = {
    400: "A field is missing or wrong (MISSING_REQUIRED_FIELDS, INVALID_FIELD, INVALID_BODY, UNSUPPORTED_MODEL), or "
    "every picture was flagged (NSFW_CONTENT)",
    401: "No API key, or none that is good (HTTP_EXCEPTION)",
    402: "Too few credits left (INSUFFICIENT_CREDITS)",
    403: "The key may not do this (FORBIDDEN)",
    404: "There is no such thing, or it is another team's (NOT_FOUND)",
    409: "Another body had this Idempotency-Key (IDEMPOTENCY_CONFLICT), or the generation was cancelled (CANCELLED)",
    413: "The body is too large (BODY_TOO_LARGE)",
    429: "Too many requests (RATE_LIMITED), or too many of the team's are waiting (TEAM_QUEUE_FULL)",
    500: "The picture could not be drawn (GENERATION_FAILED)",
    503: "The queue is full (QUEUE_FULL), the server stops, or its store is away (STORAGE_FAILED)",
}


def error_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` entries for these error statuses."""
    return {status: json_answer(_ERRORS[status], ERROR) for status in statuses}


_METHODS: Final = {"get", "post", "put", "patch", "delete"}


def keep_openapi_true(app: FastAPI) -> None:
    """Take FastAPI's 422 out of the document of `app`: wrong values are 400 here, in the API's own shape."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        for path in document["paths"].values():
            for operation in path.values():
                operation.get("responses", {}).pop("422", None)
        schemas = document.get("components", {}).get("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def allowed_methods(app: FastAPI, path: str) -> set[str]:
    """The methods that the documented routes answer on this path."""
    matches = [each for each in app.openapi()["paths"].items() if compile_path(each[0])[0].match(path)]
    # a path that is spelt out goes before one with a placeholder
    fewest = min((template.count("{") for template, _ in matches), default=0)
    found = (operations for template, operations in matches if template.count("{") == fewest)
    return {method.upper() for operations in found for method in operations if method in _METHODS}
