"""Who waits for a generation, and what a place in the queue asks for."""

import asyncio
from datetime import UTC, datetime

import pytest

from schnell.errors import ClientGoneError, ClosingError, TeamBusyError
from schnell.generations.records import Record
from schnell.generations.running import Admission, Running
from schnell.spec import QueueEstimate

_RECORD = Record(
    id="r",
    team_id="t",
    user_id="u",
    key_id=None,
    instance="main",
    dialect="onemin",
    type="IMAGE_GENERATOR",
    model="m",
    status="QUEUED",
    prompt_object={},
    settings={},
    cost=1,
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
)


async def test_who_is_gone_before_the_end_waits_no_longer() -> None:
    running, gone = Running(_RECORD, detached=True), asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(running.ended(gone))
    await asyncio.sleep(0)
    assert not waiting.done()
    gone.set_result(None)
    with pytest.raises(ClientGoneError):
        await waiting


async def test_an_end_that_is_there_counts_for_who_is_gone_too() -> None:
    running, gone = Running(_RECORD, detached=True), asyncio.get_running_loop().create_future()
    gone.set_result(None)
    running.finish(_RECORD)
    assert await running.ended(gone) is _RECORD


async def test_an_end_that_is_overdue_is_told_to_who_is_still_there() -> None:
    running, gone = Running(_RECORD, detached=True), asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(running.ended(gone))
    await asyncio.sleep(0)
    running.report_overdue("later")
    with pytest.raises(ClosingError, match="later"):
        await waiting
    assert not gone.done()


async def test_only_a_refusal_asks_how_long_others_take() -> None:
    asked = []

    def estimate() -> QueueEstimate:
        asked.append(1)
        return QueueEstimate(0, 42)

    admission = Admission(team_limit=1)
    with admission.admit(Running(_RECORD, detached=True), estimate) as place:
        place.keep()
    assert not asked
    with pytest.raises(TeamBusyError) as refused, admission.admit(Running(_RECORD, detached=True), estimate):
        pass
    assert (len(asked), refused.value.retry_after) == (1, 42)
