"""Replicate's predictions API. The wire format is that of https://replicate.com/docs/reference/http."""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import datetime
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
from schnell.spec import Progress
from schnell.web import submission
from schnell.web.auth import Generator, Reader
from schnell.web.dialects.model_list import REPLICATE_RATIOS, version_id
from schnell.web.dialects.translation import build_request, find_model, picture_links, read_base64
from schnell.web.fields import Fields, read_json_object
from schnell.web.native.records import show_time, tell_model
from schnell.web.services import Services, services_of

REPLICATE_STATUSES: Final = {
    FieldError: 422,
    UnreadableBodyError: 422,
    UnsupportedModelError: 404,
    InsufficientCreditsError: 402,
}
_TITLES: Final = {
    401: "Unauthenticated",
    402: "Insufficient credit",
    403: "Forbidden",
    404: "Not found",
    422: "Input validation failed",
    429: "Too many requests",
}


def replicate_error(error: SchnellError, status: int) -> dict[str, Any]:
    """Problem details as of RFC 7807, with the wrong fields where there are some."""
    body: dict[str, Any] = {"title": _TITLES.get(status, error.code), "detail": error.message, "status": status}
    if isinstance(error, FieldError):
        body["detail"] = "".join(f"- {each.field}: {each.message}\n" for each in error.problems)
        body["invalid_fields"] = [
            {"type": error.code, "field": each.field, "description": each.message} for each in error.problems
        ]
    return body


_PREFER: Final = re.compile(r"(?:^|[,;\s])wait(?:\s*=\s*([0-9]{1,6}))?(?=$|[,;\s])")
_LONGEST_WAIT: Final = 60
_CANCEL_AFTER: Final = re.compile(r"(?=[0-9])(?:([0-9]{1,2})h)?(?:([0-9]{1,4})m)?(?:([0-9]{1,5})s?)?")
_SHORTEST_LIFE: Final = 5


def read_wait(request: Request) -> int:
    """The seconds of `Prefer: wait[=n]`; 0 without it."""
    match = _PREFER.search(request.headers.get("prefer", ""))
    if match is None:
        return 0
    return min(int(match[1]), _LONGEST_WAIT) if match[1] else _LONGEST_WAIT


def read_life(request: Request) -> int | None:
    """The seconds of `Cancel-After`, as `30s` or `1h30m`; None without it.

    Raises:
        InvalidFieldError: it is no time, or too short.
    """
    text = request.headers.get("cancel-after", "").strip()
    if not text:
        return None
    match = _CANCEL_AFTER.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    life = hours * 3600 + minutes * 60 + seconds
    if life < _SHORTEST_LIFE:
        raise InvalidFieldError(
            FieldProblem("Cancel-After", f"must be {_SHORTEST_LIFE}s or more, such as 30s or 1h30m")
        )
    return life


_STATUS: Final = {"QUEUED": "starting", "PROCESSING": "processing", "SUCCESS": "succeeded", "FAILURE": "failed"}
_BAR: Final = 10


async def describe_prediction(
    services: Services, record: Record, running: Running | None = None, *, inline: bool = True
) -> dict[str, Any]:
    """A prediction. `inline` puts the pictures themselves into it wherever a client could not follow a link.

    The clients make files of https links and `data:` addresses only, follow no redirect, and send their token to
    whatever they open: so a link leads to this server, and is given where this server is reached by https.
    """
    address = f"{services.config.public_url}/v1/predictions/{record.id}"
    output = await _read_output(services, record, inline=inline)
    return {
        "id": record.id,
        "model": record.model,
        "version": version_id(services),
        "input": _show_input(record),
        "logs": _write_logs(record, running),
        "output": output,
        "data_removed": record.status == "SUCCESS" and output is None,
        "error": record.error_message,
        "status": "canceled" if record.error_code == "CANCELLED" else _STATUS[record.status],
        "source": "api",
        "created_at": show_time(record.created_at),
        "started_at": show_time(record.started_at),
        "completed_at": show_time(record.finished_at),
        "metrics": _measure(record),
        "urls": {"get": address, "cancel": f"{address}/cancel"},
    }


def _show_input(record: Record) -> dict[str, Any]:
    """The input as it was sent: a shape that the native API has no name for gets its name back."""
    values = dict(record.prompt_object)
    if record.dialect != "replicate" or values.get("aspect_ratio") != "custom":
        return values
    parts = 2 if str(values.get("megapixels")) == "0.25" else 1
    sides = (values["width"] * parts, values["height"] * parts)
    name = next((ratio for ratio, size in REPLICATE_RATIOS.items() if (size.width, size.height) == sides), None)
    if name is None:
        return values
    return {key: value for key, value in values.items() if key not in {"width", "height"}} | {"aspect_ratio": name}


def _gives_links(services: Services) -> bool:
    """Whether the clients can follow a link to this server."""
    return services.config.public_url.startswith("https:")


async def _read_output(services: Services, record: Record, *, inline: bool) -> list[str] | None:
    links = picture_links(services, record)
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
        done = total if running.progress.stage == "decode" else running.progress.step
    seed = record.response_object.get("seed", record.settings["seed"])
    lines = [] if seed is None else [f"Using seed: {seed}"]
    if record.served_model:
        lines.append(f"Drawn with: {record.served_model}")
    if record.started_at is not None:
        lines += [_write_step(step, total) for step in range(done + 1)]
    lines += [f"warning: {each}" for each in record.response_object.get("warnings", [])]
    return "".join(f"{line}\n" for line in lines)


def _write_step(step: int, total: int) -> str:
    # the form of a tqdm bar, which is what the SDKs' `prediction.progress` reads
    bar = "█" * (step * _BAR // total)
    return f"{100 * step // total:3d}%|{bar:{_BAR}}| {step}/{total}"


def _measure(record: Record) -> dict[str, Any]:
    if record.finished_at is None:
        return {}
    total = _seconds(record.created_at, record.finished_at)
    drawn = _seconds(record.started_at, record.finished_at) if record.started_at else 0.0
    return {"predict_time": drawn, "total_time": total, "image_count": len(record.images)}


def _seconds(start: datetime, end: datetime) -> float:
    return round((end - start).total_seconds(), 3)


router = APIRouter(tags=["Replicate"], include_in_schema=False)
_EVENTS: Final = ("start", "output", "logs", "completed")
_LOG_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Hook:
    """Where to send, and what."""

    url: str
    events: frozenset[str]

    @property
    def wants_end(self) -> bool:
        """Whether it is to hear of the prediction's end."""
        return "completed" in self.events


@router.get("/v1/webhooks/default/secret")
async def show_secret(request: Request, caller: Generator) -> dict[str, Any]:
    """The secret that this team's webhooks are signed with."""
    return {"key": services_of(request).webhooks.secret_of(caller.team_id)}


def read_hook(services: Services, fields: Fields) -> Hook | None:
    """The webhook of a prediction, if it asks for one; what is wrong with it is noted in `fields`."""
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
    return Hook(url, frozenset(events))


async def begin_reporting(services: Services, running: Running, hook: Hook) -> None:
    """Tell the webhook of a prediction from now on: its end surely, what comes before once."""
    record = running.record
    kept = await services.webhooks.subscriptions.add(record.id, record.team_id, hook.url) if hook.wants_end else None
    services.webhooks.spawn(_report(services, running, hook, kept))


async def resume_reporting(services: Services) -> None:
    """Tell of the ends that a server before this one could not deliver. To be called when no record is in between."""
    for kept in await services.webhooks.subscriptions.pending():
        try:
            async with services.database.read() as connection:
                record = await find_record(connection, kept.team_id, kept.record_id)
        except NotFoundError:
            await services.webhooks.subscriptions.end(kept)
        else:
            services.webhooks.spawn(_tell_end(services, record, kept))


async def _report(services: Services, running: Running, hook: Hook, kept: Subscription | None) -> None:
    begun, last = False, 0.0
    async with aclosing(running.follow()) as steps:
        async for progress in steps:
            if progress.stage == "queued":
                continue
            if not begun:
                begun = True
                await _tell(services, running, hook, "start")
            elif _is_news(progress, last):
                last = time.monotonic()
                await _tell(services, running, hook, "logs")
    await running.closed()
    if running.record.status == "SUCCESS":
        await _tell(services, running, hook, "output")
    if kept is not None:
        await _tell_end(services, running.record, kept)


def _is_news(progress: Progress, last: float) -> bool:
    return progress.stage == "denoise" and progress.step > 0 and time.monotonic() - last >= _LOG_SECONDS


async def _tell(services: Services, running: Running, hook: Hook, event: str) -> None:
    if event in hook.events:
        body = json.dumps(await describe_prediction(services, running.record, running, inline=False))
        await services.webhooks.tell(hook.url, running.record.team_id, body)


async def _tell_end(services: Services, record: Record, kept: Subscription) -> None:
    await services.webhooks.deliver(kept, json.dumps(await describe_prediction(services, record, inline=False)))


@dataclass(frozen=True, slots=True)
class _Wishes:
    """How a prediction is to be answered: seconds to wait (0: none), seconds to live, and whom to tell."""

    wait: float
    life: int | None
    hook: Hook | None


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
    record = await services.history.find(caller, _check_id(prediction_id))
    running = services.admission.find(record.id)
    tell_model(request, record)
    return await describe_prediction(services, running.record if running else record, running)


@router.post("/v1/predictions/{prediction_id}/cancel")
async def cancel(request: Request, caller: Generator, prediction_id: str) -> dict[str, Any]:
    """Stop a prediction at its next step; nothing is charged."""
    services = services_of(request)
    return await describe_prediction(services, await services.history.cancel(caller, _check_id(prediction_id)))


async def _create(request: Request, caller: Caller, model: str, fields: Fields) -> Response:
    services = services_of(request)
    values = fields.object("input", required=True) or {}
    wishes = _Wishes(read_wait(request), read_life(request), read_hook(services, fields))
    fields.check()
    asked = build_request(request, "replicate", model, _as_native(values), rename=lambda name: f"input.{name}")
    asked = replace(asked, detached=True, inline=not _gives_links(services))
    started = await submission.start(request, caller, asked)
    async with submission.answering(request, caller, asked, started):
        if isinstance(started, Running):
            await _attach(services, started, wishes)
        return await _answer(request, caller, started, wishes.wait)


async def _attach(services: Services, running: Running, wishes: _Wishes) -> None:
    if wishes.life is not None:
        asyncio.get_running_loop().call_later(wishes.life, running.cancel)
    if wishes.hook is None:
        return
    try:
        await begin_reporting(services, running, wishes.hook)
    except SchnellError:
        # the client gets an error instead of the prediction's id: nobody would ever ask for it
        running.cancel()
        raise


async def _answer(request: Request, caller: Caller, started: Running | str, wait: float) -> Response:
    services = services_of(request)
    ended = await _wait(request, caller, started, wait)
    running = started if isinstance(started, Running) else None
    record = ended or await submission.find_started(request, caller, started)
    answer = await describe_prediction(services, record, running)
    if ended is None:
        # while it is not done, both SDKs go on asking only when they are told that it has not begun
        answer["status"] = "starting"
    return JSONResponse(answer, status_code=201, headers={"Location": answer["urls"]["get"]})


async def _wait(request: Request, caller: Caller, started: Running | str, seconds: float) -> Record | None:
    """The record, if it ends within `seconds`, well or badly, and that is written."""
    history = services_of(request).history
    waiting = history.wait(caller, started) if isinstance(started, str) else started.ended()
    with suppress(SchnellError):
        try:
            return await asyncio.wait_for(waiting, seconds)
        except (TimeoutError, ClosingError):
            return None
    return await submission.find_started(request, caller, started)


def _as_native(values: Mapping[str, Any]) -> Mapping[str, Any]:
    ratio = values.get("aspect_ratio")
    size = REPLICATE_RATIOS.get(ratio) if isinstance(ratio, str) else None
    if size is None:
        return values
    parts = 2 if str(values.get("megapixels")) == "0.25" else 1
    return {**values, "aspect_ratio": "custom", "width": size.width // parts, "height": size.height // parts}


def _check_id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise NotFoundError("no prediction has this id") from None
