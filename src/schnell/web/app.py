"""The FastAPI application: its routes, its middleware, and the shape of errors on each path."""

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
from schnell.web.errors import DialectErrors, install_error_handlers
from schnell.web.middleware import IncomingLimits, RequestContext
from schnell.web.native import account, admin, features, loras, models, results, verification
from schnell.web.operations import files, health, proof
from schnell.web.services import Services

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_ROUTERS: Final[Sequence[APIRouter]] = (
    features.router,
    results.router,
    models.router,
    loras.router,
    loras.sites_router,
    account.router,
    admin.router,
    verification.router,
    proof.router,
    files.router,
    openai.router,
    replicate.router,
    model_list.router,
    automatic1111.router,
    huggingface.router,
    health.router,
)
#: What to call at a start, once no record is left unfinished by the server before (see `Lifecycle`).
AFTER_RECOVERY: Final = (replicate.resume_webhooks,)


def _model_list_error(error: SchnellError, status: int) -> dict[str, Any]:
    """The error bodies of OpenAI's and of Replicate's API in one: clients of both ask for `/v1/models`."""
    return openai.describe_error(error, status) | replicate.describe_error(error, status)


_DIALECT_ERRORS: Final[Sequence[DialectErrors]] = (
    openai.ERRORS,
    replicate.ERRORS,
    automatic1111.ERRORS,
    huggingface.ERRORS,
    DialectErrors(("/v1/",), _model_list_error, dialect="replicate", statuses=replicate.STATUSES),
)


def create_app(services: Services, lifespan: Lifespan | None = None) -> FastAPI:
    """The whole HTTP side over `services`. A new dialect adds its router and its errors to the lists above."""
    app = FastAPI(
        title="schnell",
        version="0.1.0",
        summary="A self-hosted FLUX.1 [schnell] + LoRA image service.",
        lifespan=lifespan,
        middleware=_middleware(services),
        # the pages have documentation of their own at /docs
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    for router in _ROUTERS:
        app.include_router(router)
    pages.install(app, {route.path for router in _ROUTERS for route in router.routes if isinstance(route, APIRoute)})
    install_error_handlers(app, _DIALECT_ERRORS)
    # last: it wraps the handlers above, and answers browsers that look for a page with a page
    pages.install_error_pages(app)
    return app


def _middleware(services: Services) -> list[Middleware]:
    """The middleware, outermost first."""
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
        # outside the limits: a browser shows a refusal to a script only with CORS headers
        layers.insert(1, cors)
    return layers
