"""The OpenAPI document, kept true: what FastAPI adds by itself and this API does not do is taken out."""

from typing import Any, Final

from fastapi import FastAPI
from starlette.routing import compile_path

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
