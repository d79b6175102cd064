"""OpenAI's error shape, and its statuses where they differ from the native ones."""

from typing import Any, Final

from schnell.errors import (FieldError, InsufficientCreditsError, SchnellError, UnsupportedModelError)

#: OpenAI's clients know these: an exhausted budget is a 429 that must not be tried again (`x-should-retry: false`).
OPENAI_STATUSES: Final = {InsufficientCreditsError: 429, UnsupportedModelError: 404}

_CODES: Final = {
    "HTTP_EXCEPTION": "invalid_api_key",
    "UNSUPPORTED_MODEL": "model_not_found",
    "RATE_LIMITED": "rate_limit_exceeded",
    "TEAM_QUEUE_FULL": "rate_limit_exceeded",
    "INSUFFICIENT_CREDITS": "insufficient_quota",
    "INVALID_FIELD": "invalid_value",
    "MISSING_REQUIRED_FIELDS": "missing_required_parameter",
    "NSFW_CONTENT": "content_policy_violation",
}
_TYPES: Final = {
    "RATE_LIMITED": "requests",
    "TEAM_QUEUE_FULL": "requests",
    "INSUFFICIENT_CREDITS": "insufficient_quota",
}


def openai_error(error: SchnellError, status: int) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": error.message,
            "type": _TYPES.get(error.code, kind),
            "param": error.problems[0].field if isinstance(error, FieldError) else None,
            "code": _CODES.get(error.code, error.code.lower()),
        }
    }
