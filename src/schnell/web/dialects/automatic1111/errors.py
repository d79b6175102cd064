"""Errors as the web UI answers them."""

from typing import Any, Final

from schnell.errors import FieldError, SchnellError, UnsupportedModelError
from schnell.web.errors import DialectErrors


def describe_error(error: SchnellError, _status: int) -> dict[str, Any]:
    """The web UI's error: FastAPI's own list for wrong fields, one line for everything else."""
    body: dict[str, Any] = {"error": error.code, "detail": error.message, "body": "", "errors": error.message}
    if isinstance(error, FieldError):
        body["detail"] = [
            {"loc": ["body", each.field], "msg": each.message, "type": "value_error"} for each in error.problems
        ]
    return body


ERRORS: Final = DialectErrors(
    ("/sdapi/",),
    describe_error,
    dialect="automatic1111",
    statuses={FieldError: 422, UnsupportedModelError: 404},
    # the web UI's own `--api-auth` is Basic, and that is what its clients can send
    challenge='Basic realm="schnell: your API key is the password"',
)
