"""What goes on, for administrators, below `/api/admin`: usage by what, queue, failures, storage, servers.

A key with the scope `admin` sees its own team, one with the scope `operator` all of it. No prompt is in any answer.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic.alias_generators import to_camel
from sqlalchemy import select
from starlette.responses import JSONResponse, Response

from schnell.accounts.administration import check_team
from schnell.accounts.audit import actor_of, record
from schnell.accounts.identity import Caller
from schnell.accounts.usage import write_csv
from schnell.database.connection import Connection
from schnell.database.tables import servers
from schnell.errors import NotFoundError
from schnell.generations.overview import (
    Grouping,
    UsageGroup,
    group_usage,
    list_failures,
    list_stored,
    list_under_way,
)
from schnell.loras.repository import name_downloads
from schnell.spec import DeviceSnapshot
from schnell.web.auth import Administrator, Operator
from schnell.web.gauges import read_figures
from schnell.web.native.account import Since, Until, UsageForm
from schnell.web.openapi import TEXT, KeyedRoute, error_answers, example_of, json_answer, schema_of
from schnell.web.services import Services, services_of

router = APIRouter(
    prefix="/api/admin", tags=["admin"], route_class=KeyedRoute, responses=error_answers(400, 401, 403, 404)
)
_MOMENT: Final = "2026-11-28T09:00:00Z"
_RECORD: Final = "0d8f3c0e-8a3b-4a34-9a51-0f6d6f3f1c11"


def _answers(example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The 200 of a route, described by what it looks like."""
    return {200: json_answer("What was found", example_of(schema_of(example), example))}


def _write_groups(groups: Sequence[UsageGroup]) -> str:
    return write_csv(groups, [field.name for field in fields(UsageGroup)])


_EXAMPLE_GROUP: Final = UsageGroup("2026-11-28", requests=3, failed=0, pictures=3, credits=3000, id="")
_USAGE_ANSWER: Final = _answers({"usage": [asdict(_EXAMPLE_GROUP)]})
_USAGE_ANSWER[200]["content"]["text/csv"] = {"schema": example_of(TEXT, _write_groups([_EXAMPLE_GROUP]))}
TeamFilter = Annotated[UUID | None, Query(description="Only this team's.")]


@router.get(
    "/usage/{by}",
    summary="Usage by day, team, member, model or LoRA",
    responses=_USAGE_ANSWER,
)
async def usage_by(  # noqa: PLR0913, PLR0917 - one argument a parameter
    request: Request,
    caller: Administrator,
    by: Grouping,
    team: TeamFilter = None,
    since: Since = None,
    until: Until = None,
    form: UsageForm = "json",
) -> Response:
    """Requests, failures, pictures and credits. A picture with two LoRAs counts for both."""
    async with services_of(request).database.scan() as connection:
        rows = await group_usage(connection, by, team_id=team_seen_by(caller, team), since=since, until=until)
    if form == "json":
        return JSONResponse({"usage": [asdict(row) for row in rows]})
    disposition = {"Content-Disposition": f'attachment; filename="usage-by-{by}.csv"'}
    return Response(_write_groups(rows), media_type="text/csv; charset=utf-8", headers=disposition)


@router.get(
    "/queue",
    summary="What is under way",
    responses=_answers(
        {"queue": [{"id": _RECORD, "team": "Default team", "user": "Ada", "stage": "denoise", "step": 1, "steps": 4}]}
    ),
)
async def queue(request: Request, caller: Administrator) -> dict[str, Any]:
    """Every generation that has not ended, the oldest first, with its stage where this server draws it."""
    return {"queue": await describe_queue(services_of(request), team_seen_by(caller, None))}


@router.post(
    "/queue/{record_id}/cancel",
    summary="Cancel a generation",
    responses=_answers({"uuid": _RECORD, "status": "CANCELLED"}),
)
async def cancel(request: Request, caller: Administrator, record_id: UUID) -> dict[str, Any]:
    """Stop a generation of anybody in the team (for operators: of anybody). Nothing is charged for it."""
    services = services_of(request)
    async with services.database.read() as connection:
        found = await list_under_way(connection, record_id=str(record_id))
    if not found or (not caller.is_operator and found[0].team_id != caller.team_id):
        raise NotFoundError("nothing of this id is under way")
    [wanted] = found
    ended = await services.history.cancel(replace(caller, team_id=wanted.team_id), wanted.id)
    async with services.database.write() as connection:
        await record(
            connection,
            actor_of(caller),
            "generation.cancelled",
            f"a generation of {wanted.user}",
            target_id=wanted.id,
            team_id=wanted.team_id,
        )
    return {"uuid": ended.id, "status": ended.status}


@router.get(
    "/failures",
    summary="What failed",
    responses=_answers(
        {
            "failures": [
                {"code": "MODEL_BUSY", "count": 2, "lastAt": _MOMENT, "recordId": _RECORD, "team": "Default team"}
            ]
        }
    ),
)
async def failures(
    request: Request,
    caller: Administrator,
    days: Annotated[int, Query(ge=1, le=365, description="How far to look back.")] = 7,
) -> dict[str, Any]:
    """Failures by kind: how often, and the last of each."""
    async with services_of(request).database.scan() as connection:
        found = await list_failures(connection, team_seen_by(caller, None), days)
    return {"failures": [_camel(asdict(each)) for each in found]}


@router.get(
    "/storage",
    summary="What is stored",
    responses=_answers({"teams": [{"team": "Default team", "pictures": 12, "bytes": 204800}]}),
)
async def storage(request: Request, caller: Administrator) -> dict[str, Any]:
    """Pictures by team; for operators also LoRAs, webhooks and the disk."""
    services = services_of(request)
    async with services.database.scan() as connection:
        found = await list_stored(connection, team_seen_by(caller, None))
        figures = await read_figures(connection) if caller.is_operator else None
    answer: dict[str, Any] = {"teams": [asdict(each) for each in found]}
    if figures is not None:
        answer |= _camel(asdict(figures)) | _camel(asdict(services.gauges.disk()))
    return answer


@router.get(
    "/servers",
    summary="Servers and devices",
    responses=_answers(
        {"servers": [{"id": _RECORD, "label": "host:8000"}], "devices": [{"name": "cpu", "isLost": False, "steps": 76}]}
    ),
)
async def list_servers(request: Request, caller: Operator) -> dict[str, Any]:  # noqa: ARG001 - only operators may
    """The servers that share this database, and the devices of the one that answers, with their memory in bytes."""
    services = services_of(request)
    async with services.database.read() as connection:
        return {"servers": await describe_servers(services, connection), "devices": describe_devices(services)}


@router.get(
    "/replicas",
    summary="Replicas of the cluster",
    responses=_answers(
        {
            "problem": None,
            "replicas": [
                {
                    "name": "x7c2f0a1/cuda:0",
                    "host": "gpu-1",
                    "queueSeconds": 3.2,
                    "plan": ["float8, 24.1 GB of 24.6 GB"],
                    "loras": [{"sha256": "9f2b…", "name": "black-light"}],
                }
            ],
        }
    ),
)
async def list_replicas(request: Request, caller: Operator) -> dict[str, Any]:  # noqa: ARG001 - only operators may
    """The engine's replicas that take jobs (`SCHNELL_RUNNER=ray`), as they last told the server that answers.

    `queueSeconds` is the work before a new job, `loras` are those in slots. Empty on a server that draws by itself.
    """
    return await describe_replicas(services_of(request))


def team_seen_by(caller: Caller, team: UUID | None) -> str | None:
    """The team to look at: the one that is asked for, or all (None) for operators, or the caller's own.

    Raises:
        NotFoundError: it is another's team.
    """
    wanted = str(team) if team else None if caller.is_operator else caller.team_id
    if wanted:
        check_team(caller, wanted)
    return wanted


async def describe_queue(services: Services, team_id: str | None) -> list[dict[str, Any]]:
    """What is under way, with `stage`, `step` and `steps` of what this server draws."""
    async with services.database.read() as connection:
        found = await list_under_way(connection, team_id)
    shown = []
    for each in found:
        running = services.admission.find(each.id)
        progress = running.progress if running else None
        stage = {"stage": progress.stage, "step": progress.step, "steps": progress.total} if progress else {}
        shown.append(_camel(asdict(each)) | {"stage": None, "step": 0, "steps": 0} | stage)
    return shown


async def describe_servers(services: Services, connection: Connection) -> list[dict[str, Any]]:
    """The servers with a lease; the one that answers, where it needs none."""
    rows = (await connection.execute(select(servers).order_by(servers.c.started_at))).all()
    columns = ("id", "label", "host", "pid", "started_at", "expires_at")
    found = [_camel({name: getattr(row, name) for name in columns}) for row in rows]
    return found or [{"id": services.lease.id, "label": services.lease.label}]


def describe_devices(services: Services) -> list[dict[str, Any]]:
    """The devices of this server."""
    return [_describe_device(device) for device in services.runner.snapshot().devices]


async def describe_replicas(services: Services) -> dict[str, Any]:
    """The cluster's replicas with the names of the LoRAs in their slots, and why nothing can be drawn, if so."""
    now = services.runner.snapshot()
    replicas = [device for device in now.devices if device.host]
    resident = {sha256 for each in replicas for sha256 in each.resident_loras}
    async with services.database.read() as connection:
        names = await name_downloads(connection, resident)
    # a name of the library says more than the reference that a file came from
    names |= {lora.sha256: lora.name for lora in await services.loras.list() if lora.sha256 in resident}
    return {
        "problem": now.problem,
        "replicas": [
            _describe_device(each)
            | {
                "host": each.host,
                "queueSeconds": round(each.queue_seconds, 2),
                "plan": each.plan,
                "loras": [{"sha256": sha256, "name": names.get(sha256)} for sha256 in each.resident_loras],
            }
            for each in replicas
        ],
    }


def _describe_device(device: DeviceSnapshot) -> dict[str, Any]:
    return {
        "name": device.name,
        "isLost": device.is_lost,
        "prepared": device.prepared,
        "activeRows": device.active_rows,
        "leasedLoras": device.leased_loras,
        "steps": device.steps,
        "stepSeconds": round(device.step_seconds, 3),
        "memoryUsed": device.memory.used if device.memory else None,
        "memory": device.memory.total if device.memory else None,
    }


def _camel(values: dict[str, Any]) -> dict[str, Any]:
    return {to_camel(name): _shown(value) for name, value in values.items()}


def _shown(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
