"""Routes for records: list, show, cancel, rate, comment, delete."""

from dataclasses import replace
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, status
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from schnell.errors import NO_NUL
from schnell.generations.records import CURSOR
from schnell.validation import Like
from schnell.web.auth import Generator, Reader
from schnell.web.fields import whole_number
from schnell.web.native.feature_schema import RECORD_ANSWER, RECORD_PAGE_ANSWER
from schnell.web.native.records import describe_record, describe_records
from schnell.web.openapi import KeyedRoute, error_answers
from schnell.web.services import services_of

router = APIRouter(tags=["records"], route_class=KeyedRoute)
_Cursor = Annotated[str, Like(CURSOR.pattern, "must be the nextCursor of a page before")]
_Text = Annotated[str, StringConstraints(max_length=4000), Like(r"[^\x00]*", NO_NUL)]
_ANSWERS = RECORD_ANSWER | error_answers(400, 401, 403, 404)


class Rating(BaseModel):
    """1 to 5, or null for none."""

    model_config = ConfigDict(strict=True)
    rating: Annotated[int | None, Field(ge=1, le=5, examples=[5]), BeforeValidator(whole_number)]


class Feedback(BaseModel):
    """Any text, or null for none."""

    model_config = ConfigDict(strict=True)
    feedback: Annotated[_Text | None, Field(examples=["just right"])]


@router.get("/api/features", summary="Earlier generations", responses=RECORD_PAGE_ANSWER | error_answers(400, 401, 403))
async def list_history(
    request: Request,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=100, description="How many.")] = 20,
    cursor: Annotated[_Cursor | None, Query(description="The nextCursor of the page before.")] = None,
) -> dict[str, Any]:
    """The team's records, newest first."""
    page = await services_of(request).history.page(caller, limit, cursor)
    return {"aiRecords": await describe_records(request, page.records), "nextCursor": page.next_cursor}


@router.get("/api/results/{record_id}", summary="One record", responses=_ANSWERS)
async def show(request: Request, caller: Reader, record_id: UUID) -> dict[str, Any]:
    """A record of the team: PROCESSING, SUCCESS with pictures, or FAILURE with `responseObject.error`.

    While the database does not take the end of a generation, `responseObject.closing` says what is known of it.
    """
    services = services_of(request)
    record = await services.history.find(caller, str(record_id))
    running = services.admission.find(record.id)
    if running is not None and running.overdue is not None:
        record = replace(record, response_object={"closing": running.overdue})
    return await describe_record(request, record)


@router.post("/api/results/{record_id}/cancel", summary="Cancel", responses=_ANSWERS)
async def cancel(request: Request, caller: Generator, record_id: UUID) -> dict[str, Any]:
    """Stop a generation at its next step; nothing is charged. One that has ended stays as it is."""
    return await describe_record(request, await services_of(request).history.cancel(caller, str(record_id)))


@router.post("/api/results/{record_id}/rating", summary="Rate", responses=_ANSWERS)
async def rate(request: Request, caller: Generator, record_id: UUID, body: Rating) -> dict[str, Any]:
    """Keep a rating with the record."""
    record = await services_of(request).history.rate(caller, str(record_id), body.rating)
    return await describe_record(request, record)


@router.post("/api/results/{record_id}/feedback", summary="Comment", responses=_ANSWERS)
async def comment(request: Request, caller: Generator, record_id: UUID, body: Feedback) -> dict[str, Any]:
    """Keep feedback with the record."""
    record = await services_of(request).history.comment(caller, str(record_id), body.feedback)
    return await describe_record(request, record)


@router.delete(
    "/api/results/{record_id}",
    summary="Delete",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=error_answers(400, 401, 403, 404, 503),
)
async def delete(request: Request, caller: Generator, record_id: UUID) -> None:
    """Remove the record and its pictures for good: members their own, an ADMIN of the team all.

    What it cost stays in the books.
    """
    await services_of(request).history.delete(caller, str(record_id))
