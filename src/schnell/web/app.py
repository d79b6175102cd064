from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from schnell.web import account, admin, files, health, lora_sources, loras, models, pages, results
from schnell.web.dialects import onemin
from schnell.web.dialects.registered import DIALECT_ERRORS, DIALECT_ROUTERS
from schnell.web.errors import install_error_handlers
from schnell.web.middleware import IncomingLimits, RequestContext
from schnell.web.services import Services

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_ROUTERS: Sequence[APIRouter] = (
    onemin.router,
    results.router,
    models.router,
    loras.router,
    lora_sources.router,
    account.router,
    admin.router,
    files.router,
    *DIALECT_ROUTERS,
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
    install_error_handlers(app, DIALECT_ERRORS)
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
