"""Errors as Replicate answers them: problem details (RFC 7807)."""

from typing import Any, Final

from schnell.errors import (
    FieldError,
    InsufficientCreditsError,
    SchnellError,
    UnreadableBodyError,
    UnsupportedModelError,
)
from schnell.web.errors import DialectErrors

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
