"""The app: which routes there are, in which shape each dialect hears of errors, and what every request passes."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from schnell.errors import SchnellError
from schnell.web import pages
from schnell.web.dialects import automatic1111, huggingface, model_list, openai, replicate
from schnell.web.dialects.openai import OPENAI_STATUSES, openai_error
from schnell.web.dialects.replicate import REPLICATE_STATUSES, replicate_error
from schnell.web.errors import DialectErrors, install_error_handlers
from schnell.web.middleware import IncomingLimits, RequestContext
from schnell.web.native import account, admin, features, lora_sources, loras, models, results
from schnell.web.operations import files, health
from schnell.web.services import Services

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_DIALECT_ROUTERS: Final[Sequence[APIRouter]] = (
    openai.router,
    replicate.router,
    model_list.router,
    automatic1111.router,
    huggingface.router,
)
_PROBLEM: Final = "application/problem+json"
_BASIC: Final = 'Basic realm="schnell: your API key is the password"'


def _model_list_error(error: SchnellError, status: int) -> dict[str, Any]:
    """`/v1/models` belongs to OpenAI's and to Replicate's clients alike: the error shapes of both."""
    return openai_error(error, status) | replicate_error(error, status)


_DIALECT_ERRORS: Final[Sequence[DialectErrors]] = (
    DialectErrors("/v1/images/", openai_error, dialect="openai", statuses=OPENAI_STATUSES),
    DialectErrors("/v1/predictions", replicate_error, _PROBLEM, "replicate", REPLICATE_STATUSES),
    DialectErrors("/v1/webhooks/", replicate_error, _PROBLEM, "replicate", REPLICATE_STATUSES),
    DialectErrors("/v1/", _model_list_error, dialect="replicate", statuses=REPLICATE_STATUSES),
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
#: What is still owed to callers from before a start, by dialect.
RESUMES: Final = (replicate.resume_reporting,)

_ROUTERS: Final[Sequence[APIRouter]] = (
    features.router,
    results.router,
    models.router,
    loras.router,
    lora_sources.router,
    account.router,
    admin.router,
    files.router,
    *_DIALECT_ROUTERS,
    health.router,
)


def create_app(services: Services, lifespan: Lifespan | None = None, version: str = "0.1.0") -> FastAPI:
    """The whole HTTP side over `services`. A new dialect is one router here, and one error shape."""
    app = FastAPI(
        title="schnell",
        version=version,
        summary="A self-hosted FLUX.1 [schnell] + LoRA image service.",
        lifespan=lifespan,
        middleware=_middleware(services),
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    for router in _ROUTERS:
        app.include_router(router)
    pages.install(app, {route.path for router in _ROUTERS for route in router.routes if isinstance(route, APIRoute)})
    install_error_handlers(app, _DIALECT_ERRORS)
    pages.install_error_pages(app)
    return app


def _middleware(services: Services) -> list[Middleware]:
    config = services.config
    layers = [
        Middleware(RequestContext, count=services.metrics.count_request),
        Middleware(IncomingLimits, default=config.max_body_bytes, by_prefix=config.body_limits),
    ]
    if config.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["API-KEY", "Authorization", "Content-Type", "Idempotency-Key"],
            expose_headers=[
                *("X-Request-Id", "Retry-After", "X-Should-Retry"),
                *("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"),
            ],
        )
        layers.insert(1, cors)
    return layers
