"""Every dialect beside the native one: its routes, and the shape of its errors by path."""

from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter

from schnell.web.dialects import (
    automatic1111,
    automatic1111_state,
    huggingface,
    model_list,
    openai,
    replicate,
    replicate_webhooks,
)
from schnell.web.dialects.openai_shapes import OPENAI_STATUSES, openai_error
from schnell.web.dialects.replicate_schema import REPLICATE_STATUSES, replicate_error
from schnell.web.errors import DialectErrors

DIALECT_ROUTERS: Final[Sequence[APIRouter]] = (
    openai.router,
    replicate.router,
    replicate_webhooks.router,
    model_list.router,
    automatic1111.router,
    automatic1111_state.router,
    huggingface.router,
)
_PROBLEM: Final = "application/problem+json"
_BASIC: Final = 'Basic realm="schnell: your API key is the password"'

DIALECT_ERRORS: Final[Sequence[DialectErrors]] = (
    DialectErrors("/v1/images/", openai_error, dialect="openai", statuses=OPENAI_STATUSES),
    DialectErrors("/v1/predictions", replicate_error, _PROBLEM, "replicate", REPLICATE_STATUSES),
    DialectErrors("/v1/webhooks/", replicate_error, _PROBLEM, "replicate", REPLICATE_STATUSES),
    DialectErrors("/v1/", model_list.model_list_error, dialect="replicate", statuses=REPLICATE_STATUSES),
    DialectErrors(
        "/sdapi/",
        automatic1111.a1111_error,
        dialect="automatic1111",
        statuses=automatic1111.A1111_STATUSES,
        challenge=_BASIC,
    ),
    DialectErrors("/models/", huggingface.huggingface_error, "application/json", "huggingface", huggingface.STATUSES),
    DialectErrors(
        "/hf-inference/", huggingface.huggingface_error, "application/json", "huggingface", huggingface.STATUSES
    ),
)
