"""What an operator's machines ask for: `/healthz`, `/readyz` and `/metrics`."""

import asyncio
import hmac
from typing import Final

from fastapi import APIRouter, Request
from sqlalchemy import text
from starlette.responses import JSONResponse, PlainTextResponse, Response

from schnell.errors import DatabaseUnavailableError, UnauthorizedError
from schnell.spec import RunnerSnapshot
from schnell.web.auth import key_in
from schnell.web.metrics import CONTENT_TYPE
from schnell.web.openapi import error_answers, example_of, json_answer, object_of
from schnell.web.services import Services, services_of

router = APIRouter(tags=["operation"])

#: A probe that waits longer than a load balancer does would be no answer at all.
_DATABASE_SECONDS: Final = 2.0


@router.get("/healthz", summary="Alive", response_class=PlainTextResponse)
async def healthz() -> str:
    """200 while the process answers."""
    return "ok"


_READY: Final = object_of(
    {
        "ready": {"type": "boolean"},
        "problem": {"type": ["string", "null"]},
        "lostDevices": {"type": "array", "items": {"type": "string"}},
    },
    "ready",
    "problem",
)


@router.get(
    "/readyz",
    summary="Ready",
    responses={
        200: json_answer("Generations are accepted", example_of(_READY, {"ready": True, "problem": None})),
        503: json_answer(
            "Starting, stopping, without its database or a device, or with generations whose end is not written yet",
            example_of(_READY, {"ready": False, "problem": "the database does not answer"}),
        ),
    },
)
async def readyz(request: Request) -> Response:
    """200 when generations are accepted; 503 while the model is compiled, the server stops, its database is away, or
    an end is not written.

    An end that the database does not take is a sign that it takes no other write either. `lostDevices` names GPUs that
    failed and were taken out: while another one is left, the server is ready; without any, only a restart helps.
    """
    services = services_of(request)
    problem = await _find_problem(services)
    lost = [device.name for device in services.runner.snapshot().devices if device.is_lost]
    answer = {"ready": problem is None, "problem": problem} | ({"lostDevices": lost} if lost else {})
    return JSONResponse(answer, status_code=503 if problem else 200)


async def _find_problem(services: Services) -> str | None:
    if services.admission.closed:
        return "the server is stopping"
    if problem := _problem_of(services.runner.snapshot()):
        return problem
    overdue = services.closings.overdue()
    if overdue.count:
        return f"the ends of {overdue.count} generations are not written yet, for {overdue.seconds:.0f} s"
    try:
        async with asyncio.timeout(_DATABASE_SECONDS), services.database.read() as connection:
            await connection.execute(text("SELECT 1"))
    except (DatabaseUnavailableError, TimeoutError):
        return "the database does not answer"
    return None


def _problem_of(now: RunnerSnapshot) -> str | None:
    if now.problem is not None:
        return now.problem
    if now.devices and all(device.is_lost for device in now.devices):
        return "every device has failed; restart the server"
    # one that is ready draws alone until the others are
    if now.devices and all(device.is_lost or device.prepared < 1 for device in now.devices):
        return f"the model is being compiled, {max(device.prepared for device in now.devices):.0%} so far"
    return None


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
    await services.gauges.refresh()
    return Response(services.metrics.render(), media_type=CONTENT_TYPE)
