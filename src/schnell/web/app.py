"""The FastAPI application: its routes, its middleware, and the shape of errors on each path."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from schnell.errors import SchnellError
from schnell.web import pages
from schnell.web.agents import AgentTools
from schnell.web.dialects import automatic1111, huggingface, model_list, openai, replicate
from schnell.web.errors import DialectErrors, install_error_handlers
from schnell.web.middleware import HeadAsGet, IncomingLimits, RequestContext
from schnell.web.native import (
    account,
    admin,
    features,
    invites,
    loras,
    models,
    operations,
    own_account,
    results,
    sign_in,
    verification,
)
from schnell.web.native.records import tell_record
from schnell.web.openapi import describe_keys
from schnell.web.operations import files, health, proof
from schnell.web.response_headers import EXPOSED
from schnell.web.services import Services
from schnell.web.webhooks import Describe, resume_webhooks

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

_ROUTERS: Final[Sequence[APIRouter]] = (
    features.router,
    results.router,
    models.router,
    loras.router,
    loras.sites_router,
    account.router,
    sign_in.router,
    own_account.router,
    admin.router,
    operations.router,
    invites.router,
    verification.router,
    proof.router,
    openai.router,
    replicate.router,
    model_list.router,
    automatic1111.router,
    huggingface.router,
    health.router,
    # its paths have placeholders alone: after every route that spells its own out
    files.router,
)


def _words_of(dialect: str) -> Describe:
    """How the webhooks of a dialect's records tell of them."""
    return replicate.tell_prediction if dialect == "replicate" else tell_record


#: What to call at a start, once no record is left unfinished by the server before (see `Lifecycle`).
AFTER_RECOVERY: Final = (partial(resume_webhooks, describe=_words_of),)


def _model_list_error(error: SchnellError, status: int) -> dict[str, Any]:
    """The error bodies of OpenAI's and of Replicate's API in one: clients of both ask for `/v1/models`."""
    return openai.describe_error(error, status) | replicate.describe_error(error, status)


#: How long a browser remembers that it may ask; two hours is the most that Chromium does.
_PREFLIGHT_SECONDS: Final = 7200
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
        lifespan=_with_agents(lifespan),
        middleware=_middleware(services),
        # the pages have documentation of their own at /docs
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    app.state.checkpoints = automatic1111.ChosenCheckpoints()
    app.state.agents = AgentTools(app)
    app.state.agents.install()
    for router in _ROUTERS:
        app.include_router(router)
    describe_keys(app)
    pages.install(app, {route.path for router in _ROUTERS for route in router.routes if isinstance(route, APIRoute)})
    install_error_handlers(app, _DIALECT_ERRORS)
    # last: it wraps the handlers above, and answers browsers that look for a page with a page
    pages.install_error_pages(app)
    return app


def _with_agents(lifespan: Lifespan | None) -> Lifespan:
    """The app's own lifespan, in which agents are answered, too."""

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app) if lifespan else nullcontext(), app.state.agents.running():
            yield

    return run


def _middleware(services: Services) -> list[Middleware]:
    """The middleware, outermost first."""
    config = services.config
    layers = [
        Middleware(RequestContext, count=services.metrics.count_request),
        Middleware(HeadAsGet),
        Middleware(IncomingLimits, default=config.max_body_bytes, by_prefix=config.body_limits),
    ]
    if config.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            # whatever a request needs: SDKs send headers of their own, and it is the origin that the operator allows
            allow_headers=["*"],
            expose_headers=list(EXPOSED),
            max_age=_PREFLIGHT_SECONDS,
        )
        # outside the limits: a browser shows a refusal to a script only with CORS headers
        layers.insert(1, cors)
    return layers
