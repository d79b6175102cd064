"""Records as the native API shows them: exactly the keys of the reference document, in its order.

Its members' keys are written out by hand for that reason, although `accounts.identity` has the same fields.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from starlette.requests import Request

from schnell.accounts.identity import Member
from schnell.accounts.teams import find_members
from schnell.generations import Quote, Record, Running
from schnell.web.services import Services, services_of
from schnell.web.submission import add_record_headers

#: Statuses that the document has another name for: it does not tell waiting from being drawn.
_STATUS: Final = {"QUEUED": "PROCESSING"}


async def describe_record(request: Request, record: Record) -> dict[str, Any]:
    """`{"aiRecord": …}` for one record, with fresh links, and headers that name its model and its cost."""
    add_record_headers(request, record)
    return {"aiRecord": (await describe_records(request, [record]))[0]}


async def describe_records(request: Request, records: Sequence[Record]) -> list[dict[str, Any]]:
    """The `aiRecord` of each record. They must be of one team: their members are read with one query."""
    return await _describe(services_of(request), records)


async def tell_record(services: Services, record: Record, running: Running | None) -> dict[str, Any]:  # noqa: ARG001 - as webhooks call it
    """A record as webhooks tell of it: what `GET /api/results/{uuid}` answers."""
    return {"aiRecord": (await _describe(services, [record]))[0]}


async def _describe(services: Services, records: Sequence[Record]) -> list[dict[str, Any]]:
    users: dict[str, dict[str, Any]] = {}
    if records:
        async with services.database.read() as connection:
            found = await find_members(connection, records[0].team_id, [record.user_id for record in records])
            users = {each.user_id: _team_user(each) for each in found}
    return [_ai_record(services, record, users.get(record.user_id)) for record in records]


def picture_urls(services: Services, record: Record) -> list[str]:
    """A fresh link for every picture of a finished record, to wherever it is stored; none for other records."""
    if record.status != "SUCCESS":
        return []
    return [services.store.url(image.key, services.config.link_seconds) for image in record.images]


def describe_quote(quote: Quote) -> dict[str, Any]:
    """A dry run's cost in credits, size in pixels, place in the queue and expected seconds; nothing was fetched."""
    return {
        "cost": quote.cost,
        "width": quote.spec.size.width,
        "height": quote.spec.size.height,
        "numOutputs": quote.spec.num_outputs,
        "queuePosition": quote.estimate.position,
        "expectedSeconds": round(quote.estimate.expected_seconds, 3),
        "warnings": [
            *quote.warnings,
            *(
                f"{name[:100]!r} is not here yet, its size is unknown: it is fetched before the picture is drawn"
                for name in quote.missing
            ),
        ],
    }


def show_time(moment: datetime | None) -> str | None:
    """A time in UTC with milliseconds, as `2025-10-24T08:09:21.920Z`; None for None."""
    # of the ways to write it the quickest: a page has some hundred times. The zone, UTC, is cut off
    return f"{moment.isoformat(timespec='milliseconds')[:23]}Z" if moment else None


def _ai_record(services: Services, record: Record, team_user: dict[str, Any] | None) -> dict[str, Any]:
    urls = picture_urls(services, record)
    return {
        "uuid": record.id,
        "userId": record.user_id,
        "teamId": record.team_id,
        "teamUser": team_user,
        "model": record.model,
        "type": record.type,
        "metadata": record.metadata,
        "rating": record.rating,
        "feedback": record.feedback,
        "conversationId": record.conversation_id,
        "status": _STATUS.get(record.status, record.status),
        "createdAt": show_time(record.created_at),
        "aiRecordDetail": {
            "promptObject": record.prompt_object,
            "resultObject": [services.config.result_prefix + image.key for image in record.images] if urls else [],
            "responseObject": _response_object(record, urls),
        },
        "additionalData": None,
        "temporaryUrl": urls[0] if urls else None,
    }


def _response_object(record: Record, urls: list[str]) -> dict[str, Any]:
    if record.status != "SUCCESS":
        return dict(record.response_object)
    found = record.response_object
    before = {key: found.get(key) for key in ("seed", "seeds", "width", "height")}
    after = {key: found.get(key) for key in ("timings", "loras", "warnings", "flagged", "proof")}
    return before | {"temporaryUrls": urls} | after | {"servedModel": record.served_model}


def _team_user(member: Member) -> dict[str, Any]:
    return {
        "teamId": member.team_id,
        "userId": member.user_id,
        "userName": member.user_name,
        "userAvatar": member.user_avatar,
        "status": member.status,
        "role": member.role,
        "creditLimit": member.credit_limit,
        "usedCredit": member.used_credit,
        "createdAt": show_time(member.created_at),
        "createdBy": member.created_by,
        "updatedAt": show_time(member.updated_at),
        "updatedBy": member.updated_by,
    }
