"""Automatic1111's web UI API: `POST /sdapi/v1/txt2img`, and the lists and settings that its clients ask for.

The wire format is that of https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/API. Its clients have values
built in that suit other models (20 steps, a guidance of 7), so numbers are brought into FLUX's range here rather than
refused; `notes` in the answer's `info` says what was changed or ignored.
"""

from fastapi import APIRouter

from schnell.web.dialects.automatic1111 import drawing, lists
from schnell.web.dialects.automatic1111.lists import ChosenCheckpoints
from schnell.web.dialects.automatic1111.schema import ERRORS, describe_error

router = APIRouter()
router.include_router(drawing.router)
# last: its lists are one route with a placeholder, and the first route that matches answers
router.include_router(lists.router)

__all__ = ["ERRORS", "ChosenCheckpoints", "describe_error", "router"]
