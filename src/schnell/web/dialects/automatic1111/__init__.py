"""Automatic1111's web UI API: `POST /sdapi/v1/txt2img`, and the lists and settings that its clients ask for.

The wire format is that of https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API. Its clients have values
built in that suit other models (20 steps, a guidance of 7), so numbers are brought into FLUX's range here rather than
refused; `notes` in the answer's `info` says what was changed or ignored.

`drawing` holds the way of a request through the folder: `reading` understands its numbers and the tags in its prompt,
and the answer is written where it was drawn. `lists` holds what clients fill their menus with, and the checkpoint that
each key has chosen. Here are the errors: FastAPI's own list for wrong fields, since the web UI is built on FastAPI, and
one line for everything else.
"""

from typing import Any, Final

from fastapi import APIRouter

from schnell.errors import FieldError, SchnellError, UnsupportedModelError
from schnell.web.dialects.automatic1111 import drawing, lists
from schnell.web.dialects.automatic1111.lists import ChosenCheckpoints
from schnell.web.errors import DialectErrors

router = APIRouter()
router.include_router(drawing.router)
# last: its lists are one route with a placeholder, and the first route that matches answers
router.include_router(lists.router)

__all__ = ["ERRORS", "ChosenCheckpoints", "describe_error", "router"]


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
