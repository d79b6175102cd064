"""Replicate's predictions API, with its webhooks.

The wire format is that of https://replicate.com/docs/reference/http. A prediction is a generation that goes on without
its client; its id is the record's.
"""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from schnell.accounts.identity import Caller
from schnell.errors import (
    ClosingError,
    FieldError,
    FieldProblem,
    InsufficientCreditsError,
    InvalidFieldError,
    NotFoundError,
    SchnellError,
    UnreadableBodyError,
    UnsupportedModelError,
)
from schnell.generations import Record, Running
from schnell.generations.records import find_record
from schnell.generations.webhooks import Subscription
from schnell.web import submission
from schnell.web.auth import Generator, Reader
from schnell.web.dialects.model_list import as_native, as_sent, version_id
from schnell.web.dialects.translation import build_request, find_model, read_base64, server_links
from schnell.web.errors import DialectErrors
from schnell.web.fields import Fields, read_json_object
from schnell.web.native.records import add_model_header, show_time
from schnell.web.services import Services, services_of

router = APIRouter(tags=["Replicate"], include_in_schema=False)
# Errors

_TITLES: Final = {
    401: "Unauthenticated",
    402: "Insufficient credit",
    403: "Forbidden",
    404: "Not found",
    422: "Input validation failed",
    429: "Too many requests",
}
STATUSES: Final = {FieldError: 422, UnreadableBodyError: 422, UnsupportedModelError: 404, InsufficientCreditsError: 402}


def describe_error(error: SchnellError, status: int) -> dict[str, Any]:
    """Problem details (RFC 7807); `invalid_fields` lists wrong fields."""
    body: dict[str, Any] = {"title": _TITLES.get(status, error.code), "detail": error.message, "status": status}
    if isinstance(error, FieldError):
        body["detail"] = "".join(f"- {each.field}: {each.message}\n" for each in error.problems)
        body["invalid_fields"] = [
            {"type": error.code, "field": each.field, "description": each.message} for each in error.problems
        ]
    return body


ERRORS: Final = DialectErrors(
    ("/v1/predictions", "/v1/webhooks/"), describe_error, "application/problem+json", "replicate", STATUSES
)


# Routes


@router.get("/v1/webhooks/default/secret")
async def show_secret(request: Request, caller: Generator) -> dict[str, Any]:
    """The secret that this team's webhooks are signed with."""
    return {"key": services_of(request).webhooks.secret_of(caller.team_id)}


@router.post("/v1/models/{owner}/{name}/predictions")
async def create_of_model(request: Request, caller: Generator, owner: str, name: str) -> Response:
    """Start a prediction of a model by its name."""
    fields = Fields(await read_json_object(request))
    return await _create(request, caller, find_model(request, f"{owner}/{name}"), fields)


@router.post("/v1/predictions")
async def create(request: Request, caller: Generator) -> Response:
    """Start a prediction of a version: its 64 hexadecimal digits, `owner/name`, or both with a colon between."""
    fields = Fields(await read_json_object(request))
    version = fields.text("version", required=True) or ""
    fields.check()
    model, _, digits = version.rpartition(":") if ":" in version or "/" not in version else (version, "", "")
    if digits and digits != version_id(services_of(request)):
        raise NotFoundError("this version does not exist here; GET /v1/models/{owner}/{name} names the one that does")
    return await _create(request, caller, find_model(request, model or None), fields)


@router.get("/v1/predictions")
async def list_predictions(
    request: Request, caller: Reader, cursor: Annotated[str | None, Query(max_length=64)] = None
) -> dict[str, Any]:
    """The team's predictions, newest first, whichever dialect they came in."""
    services = services_of(request)
    page = await services.history.page(caller, 100, cursor)
    following = f"{services.config.public_url}/v1/predictions?cursor={page.next_cursor}" if page.next_cursor else None
    results = [await describe_prediction(services, record, inline=False) for record in page.records]
    return {"next": following, "previous": None, "results": results}


@router.get("/v1/predictions/{prediction_id}")
async def show(request: Request, caller: Reader, prediction_id: str) -> dict[str, Any]:
    """One prediction as it is now."""
    services = services_of(request)
    record = await services.history.find(caller, _parse_id(prediction_id))
    running = services.admission.find(record.id)
    add_model_header(request, record)
    return await describe_prediction(services, running.record if running else record, running)


@router.post("/v1/predictions/{prediction_id}/cancel")
async def cancel(request: Request, caller: Generator, prediction_id: str) -> dict[str, Any]:
    """Stop a prediction at its next step; nothing is charged."""
    services = services_of(request)
    return await describe_prediction(services, await services.history.cancel(caller, _parse_id(prediction_id)))


def _parse_id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise NotFoundError("no prediction has this id") from None


async def _create(request: Request, caller: Caller, model: str, fields: Fields) -> Response:
    services = services_of(request)
    values = fields.object("input", required=True) or {}
    wait = read_wait(request.headers.get("prefer", ""))
    lifetime = read_lifetime(request.headers.get("cancel-after", ""))
    webhook = read_webhook(services, fields)
    fields.check()
    asked = build_request(request, "replicate", model, as_native(values), rename=lambda name: f"input.{name}")
    asked = replace(asked, detached=True, inline=not _gives_links(services))
    started = await submission.start(request, caller, asked)
    async with submission.answering(request, caller, asked, started):
        if isinstance(started, Running):
            await _attach(services, started, webhook, lifetime)
        return await _answer(request, caller, started, wait)


async def _attach(services: Services, running: Running, webhook: "Webhook | None", lifetime: int | None) -> None:
    """Limit a prediction's lifetime, and report it to its webhook."""
    if lifetime is not None:
        asyncio.get_running_loop().call_later(lifetime, running.cancel)
    if webhook is None:
        return
    try:
        await _start_webhook(services, running, webhook)
    except SchnellError:
        # the client gets an error instead of the prediction's id: nobody would ever ask for it
        running.cancel()
        raise


async def _answer(request: Request, caller: Caller, started: Running | str, wait: float) -> Response:
    services = services_of(request)
    ended = await _wait(request, caller, started, wait)
    record = ended or await submission.find_started(request, caller, started)
    answer = await describe_prediction(services, record, started if isinstance(started, Running) else None)
    if ended is None:
        # both SDKs poll a prediction that is not done only if its first answer says that it has not begun
        answer["status"] = "starting"
    return JSONResponse(answer, status_code=201, headers={"Location": answer["urls"]["get"]})


async def _wait(request: Request, caller: Caller, started: Running | str, seconds: float) -> Record | None:
    """The record, if it ends within `seconds`, well or badly, and that is written."""
    history = services_of(request).history
    waiting = history.wait(caller, started) if isinstance(started, str) else started.ended()
    with suppress(SchnellError):
        try:
            # on a timeout the wait alone is cancelled: a detached generation goes on
            return await asyncio.wait_for(waiting, seconds)
        except (TimeoutError, ClosingError):
            return None
    return await submission.find_started(request, caller, started)


# Reading a request

_PREFER: Final = re.compile(r"(?:^|[,;\s])wait(?:\s*=\s*([0-9]{1,6}))?(?=$|[,;\s])")
_MAX_WAIT: Final = 60
_LIFETIME: Final = re.compile(r"(?=[0-9])(?:([0-9]{1,2})h)?(?:([0-9]{1,4})m)?(?:([0-9]{1,5})s?)?")
_MIN_LIFETIME: Final = 5
_EVENTS: Final = ("start", "output", "logs", "completed")


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where to send a prediction, and after which of Replicate's four events."""

    url: str
    events: frozenset[str]


def read_wait(prefer: str) -> int:
    """The seconds to wait that a `Prefer` header asks for with `wait` or `wait=n`: at most 60, and 0 without it."""
    match = _PREFER.search(prefer)
    if match is None:
        return 0
    return min(int(match[1]), _MAX_WAIT) if match[1] else _MAX_WAIT


def read_lifetime(cancel_after: str) -> int | None:
    """The seconds that a `Cancel-After` header says, such as `30s` or `1h30m`; None for an empty one.

    Raises:
        InvalidFieldError: it is not such a time, or less than 5 seconds.
    """
    text = cancel_after.strip()
    if not text:
        return None
    match = _LIFETIME.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    lifetime = hours * 3600 + minutes * 60 + seconds
    if lifetime < _MIN_LIFETIME:
        raise InvalidFieldError(FieldProblem("Cancel-After", f"must be {_MIN_LIFETIME}s or more, such as 30s or 1h30m"))
    return lifetime


def read_webhook(services: Services, fields: Fields) -> Webhook | None:
    """The webhook that a prediction asks for, if any. What is wrong with it is noted in `fields`."""
    url = fields.text("webhook")
    events = fields.raw("webhook_events_filter")
    if events is None:
        events = list(_EVENTS)
    if not isinstance(events, list) or not all(isinstance(each, str) and each in _EVENTS for each in events):
        fields.refuse("webhook_events_filter", f"must be a list out of {', '.join(_EVENTS)}")
        return None
    if not url:
        return None
    if problem := services.webhooks.refusal_of(url):
        fields.refuse("webhook", problem)
    return Webhook(url, frozenset(events))


# Writing a prediction

_STATUS: Final = {"QUEUED": "starting", "PROCESSING": "processing", "SUCCESS": "succeeded", "FAILURE": "failed"}
_BAR_WIDTH: Final = 10


async def describe_prediction(
    services: Services, record: Record, running: Running | None = None, *, inline: bool = True
) -> dict[str, Any]:
    """A prediction. `inline` allows `data:` addresses in `output` where a client could not follow a link.

    The clients make files of https links and `data:` addresses only, follow no redirect, and send their token to
    whatever they open. So links lead to this server, and are given where its public address is https.
    """
    address = f"{services.config.public_url}/v1/predictions/{record.id}"
    output = await _read_output(services, record, inline=inline)
    return {
        "id": record.id,
        "model": record.model,
        "version": version_id(services),
        "input": as_sent(record),
        "logs": _write_logs(record, running),
        "output": output,
        "data_removed": record.status == "SUCCESS" and output is None,
        "error": record.error_message,
        "status": "canceled" if record.error_code == "CANCELLED" else _STATUS[record.status],
        "source": "api",
        "created_at": show_time(record.created_at),
        "started_at": show_time(record.started_at),
        "completed_at": show_time(record.finished_at),
        "metrics": _metrics_of(record),
        "urls": {"get": address, "cancel": f"{address}/cancel"},
    }


def _gives_links(services: Services) -> bool:
    """Whether the clients can follow a link to this server."""
    return services.config.public_url.startswith("https:")


async def _read_output(services: Services, record: Record, *, inline: bool) -> list[str] | None:
    links = server_links(services, record)
    if not links:
        return None
    if not inline or _gives_links(services):
        return links
    try:
        pictures = await read_base64(services, record)
    except NotFoundError:
        return None
    media_types = [image.media_type for image in record.images]
    return [f"data:{kind};base64,{picture}" for kind, picture in zip(media_types, pictures, strict=True)]


def _write_logs(record: Record, running: Running | None) -> str:
    total = record.settings["steps"]
    done = 0
    if record.status == "SUCCESS":
        done = total
    elif running is not None:
        done = running.progress.step
    seed = record.response_object.get("seed", record.settings["seed"])
    lines = [] if seed is None else [f"Using seed: {seed}"]
    if record.served_model:
        lines.append(f"Drawn with: {record.served_model}")
    if record.started_at is not None:
        lines += [_write_step(step, total) for step in range(done + 1)]
    lines += [f"warning: {each}" for each in record.response_object.get("warnings", [])]
    return "".join(f"{line}\n" for line in lines)


def _write_step(step: int, total: int) -> str:
    # the form of a tqdm progress bar, from which the SDKs read `prediction.progress`
    bar = "█" * (step * _BAR_WIDTH // total)
    return f"{100 * step // total:3d}%|{bar:{_BAR_WIDTH}}| {step}/{total}"


def _metrics_of(record: Record) -> dict[str, Any]:
    if record.finished_at is None:
        return {}
    total = (record.finished_at - record.created_at).total_seconds()
    drawn = (record.finished_at - record.started_at).total_seconds() if record.started_at else 0.0
    return {"predict_time": round(drawn, 3), "total_time": round(total, 3), "image_count": len(record.images)}


# Webhooks

_LOG_SECONDS: Final = 0.5


async def resume_webhooks(services: Services, subscriptions: Sequence[Subscription]) -> None:
    """Deliver the `completed` events that another server could not.

    To be called when their records have ended: one that was left unfinished has no end to report yet.
    """
    for kept in subscriptions:
        try:
            async with services.database.read() as connection:
                record = await find_record(connection, kept.team_id, kept.record_id)
        except NotFoundError:
            await services.webhooks.subscriptions.end(kept)
        else:
            services.webhooks.spawn(_send_completed(services, record, kept))


async def _start_webhook(services: Services, running: Running, webhook: Webhook) -> None:
    """Report a prediction to its webhook from now on.

    `completed` is kept in the database until it is delivered, also across restarts; the other events are sent once.
    """
    record = running.record
    kept = None
    if "completed" in webhook.events:
        kept = await services.webhooks.subscriptions.add(record.id, record.team_id, webhook.url)
    services.webhooks.spawn(_report(services, running, webhook, kept))


async def _report(services: Services, running: Running, webhook: Webhook, kept: Subscription | None) -> None:
    begun, last_logs = False, 0.0
    async with aclosing(running.follow()) as steps:
        async for progress in steps:
            if progress.stage in {"queued", "fetch"}:
                continue
            if not begun:
                begun = True
                await _send(services, running, webhook, "start")
            elif progress.step > 0 and time.monotonic() - last_logs >= _LOG_SECONDS:
                last_logs = time.monotonic()
                await _send(services, running, webhook, "logs")
    await running.closed()
    if running.record.status == "SUCCESS":
        await _send(services, running, webhook, "output")
    if kept is not None:
        await _send_completed(services, running.record, kept)


async def _send(services: Services, running: Running, webhook: Webhook, event: str) -> None:
    if event in webhook.events:
        body = json.dumps(await describe_prediction(services, running.record, running, inline=False))
        await services.webhooks.tell(webhook.url, running.record.team_id, body)


async def _send_completed(services: Services, record: Record, kept: Subscription) -> None:
    await services.webhooks.deliver(kept, json.dumps(await describe_prediction(services, record, inline=False)))
