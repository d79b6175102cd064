"""Replicate's predictions API, with its webhooks.

The wire format is that of https://replicate.com/docs/reference/http. A prediction is a generation that goes on without
its client; its id is the record's.

`routes` holds the way of a request through the folder: `reading` understands it, `writing` shows the prediction, also
to webhooks. `schema` describes all of it for the OpenAPI document. Here are the errors, which are
problem details (RFC 7807): the SDKs show `detail`, and `invalid_fields` is what pages can put beside their fields. The
list of models, which OpenAI's clients ask for under the same path, is `web/dialects/model_list.py`.
"""

from typing import Any, Final

from schnell.errors import (
    FieldError,
    InsufficientCreditsError,
    SchnellError,
    UnreadableBodyError,
    UnsupportedModelError,
)
from schnell.web.dialects.replicate.routes import router
from schnell.web.dialects.replicate.writing import tell_prediction
from schnell.web.errors import DialectErrors

__all__ = ["ERRORS", "STATUSES", "describe_error", "router", "tell_prediction"]

_TITLES: Final = {
    401: "Unauthenticated",
    402: "Insufficient credit",
    403: "Forbidden",
    404: "Not found",
    422: "Input validation failed",
    429: "Too many requests",
}
STATUSES: Final = {FieldError: 422, UnreadableBodyError: 422, UnsupportedModelError: 404, InsufficientCreditsError: 402}


def describe_error(error: SchnellError, status: int) -> dict[str, Any]:
    """Problem details (RFC 7807); `invalid_fields` lists wrong fields."""
    body: dict[str, Any] = {"title": _TITLES.get(status, error.code), "detail": error.message, "status": status}
    if isinstance(error, FieldError):
        body["detail"] = "".join(f"- {each.field}: {each.message}\n" for each in error.problems)
        body["invalid_fields"] = [
            {"type": error.code, "field": each.field, "description": each.message} for each in error.problems
        ]
    return body


ERRORS: Final = DialectErrors(
    ("/v1/predictions", "/v1/webhooks/"), describe_error, "application/problem+json", "replicate", STATUSES
)
