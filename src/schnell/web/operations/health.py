"""What an operator's machines ask for: `/healthz`, `/readyz` and `/metrics`."""

import hmac
from typing import Final

from fastapi import APIRouter, Request
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import JSONResponse, PlainTextResponse, Response

from schnell.errors import UnauthorizedError
from schnell.web.auth import key_in
from schnell.web.metrics import CONTENT_TYPE
from schnell.web.openapi import error_answers, example_of, json_answer, object_of
from schnell.web.services import services_of

router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="Alive", response_class=PlainTextResponse)
async def healthz() -> str:
    """200 while the process answers."""
    return "ok"


_READY: Final = object_of({"ready": {"type": "boolean"}, "problem": {"type": ["string", "null"]}})


@router.get(
    "/readyz",
    summary="Ready",
    responses={
        200: json_answer("Generations are accepted", example_of(_READY, {"ready": True, "problem": None})),
        503: json_answer(
            "Stopping, or without its database",
            example_of(_READY, {"ready": False, "problem": "the database does not answer"}),
        ),
    },
)
async def readyz(request: Request) -> Response:
    """200 when generations are accepted; 503 while the server stops or its database is away."""
    services = services_of(request)
    problem = "the server is stopping" if services.admission.closed else None
    try:
        async with services.database.read() as connection:
            await connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError):
        problem = "the database does not answer"
    return JSONResponse({"ready": problem is None, "problem": problem}, status_code=503 if problem else 200)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=PlainTextResponse,
    responses=error_answers(401),
)
async def metrics(request: Request) -> Response:
    """Counters and gauges in Prometheus' text format. With `SCHNELL_METRICS_TOKEN` set, a bearer token is needed."""
    services = services_of(request)
    token = services.config.metrics_token
    # compared in constant time: how long it takes tells nothing about the token
    if token and not hmac.compare_digest((key_in(request) or "").encode(), token.encode()):
        raise UnauthorizedError("send the metrics token as Authorization: Bearer")
    return Response(services.metrics.render(), media_type=CONTENT_TYPE)
