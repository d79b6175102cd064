import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeRunner
from schnell.accounts.credits import audit
from schnell.accounts.teams import change_member, change_team
from schnell.errors import (
    AssetError,
    GenerationFailedError,
    ModelBusyError,
    PictureTooLargeError,
    SchnellError,
)
from servers import BODY, Server, body_with, run_server
from waiting import until


async def session(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = (await server.client.get("/api/session")).json()
    return found


async def result(server: Server, uuid: str) -> dict[str, Any]:
    found: dict[str, Any] = (await server.client.get(f"/api/results/{uuid}")).json()["aiRecord"]
    return found


async def start_async(server: Server, **values: Any) -> str:
    answer = await server.client.post("/api/features", json=body_with(**values) | {"async": True})
    assert answer.status_code == 200, answer.text
    record = answer.json()["aiRecord"]
    assert record["status"] == "PROCESSING"
    return str(record["uuid"])


async def only_failure(server: Server) -> dict[str, Any]:
    [record] = (await server.client.get("/api/features")).json()["aiRecords"]
    assert record["status"] == "FAILURE"
    assert record["aiRecordDetail"]["resultObject"] == []
    assert record["temporaryUrl"] is None
    assert (await session(server))["usedCredit"] == 0
    assert await server.services.store.list_keys() == []
    async with server.services.database.read() as connection:
        assert await audit(connection) == []
    return dict(record["aiRecordDetail"]["responseObject"]["error"])


async def test_a_failed_picture_costs_nothing_and_its_record_says_why(server: Server) -> None:
    server.runner.failure = GenerationFailedError("out of memory")
    answer = await server.draw()
    assert (answer.status_code, answer.json()["errorCode"]) == (500, "GENERATION_FAILED")
    assert answer.headers["x-should-retry"] == "true"
    assert await only_failure(server) == {"errorCode": "GENERATION_FAILED", "message": "out of memory"}


@pytest.mark.parametrize(
    ("failure", "status", "retry_after"),
    [(ModelBusyError("no memory", 7.2), 503, "8"), (PictureTooLargeError("too large"), 400, None)],
)
async def test_a_picture_without_memory_costs_nothing_and_says_whether_to_ask_again(
    server: Server, failure: SchnellError, status: int, retry_after: str | None
) -> None:
    server.runner.failure = failure
    answer = await server.draw()
    assert (answer.status_code, answer.json()["errorCode"]) == (status, failure.code)
    assert answer.headers.get("Retry-After") == retry_after
    assert (await only_failure(server))["errorCode"] == failure.code
    [record] = (await server.client.get("/api/features")).json()["aiRecords"]
    # the record tells it again, to whoever asks for the answer later
    again = await server.client.get(f"/api/results/{record['uuid']}")
    assert (again.json().get("errorCode") or failure.code) == failure.code
    server.runner.failure = None
    assert (await server.draw()).status_code == 200


async def test_an_unexpected_error_shows_no_insides(server: Server) -> None:
    server.runner.failure = RuntimeError("secret insides")
    answer = await server.draw()
    assert answer.status_code == 500
    assert "insides" not in answer.text
    await only_failure(server)


async def test_a_store_that_fails_costs_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise AssetError("the disk is full")

    monkeypatch.setattr(server.services.store, "put", refuse)
    answer = await server.draw(num_outputs=2)
    assert (answer.status_code, answer.json()["errorCode"]) == (503, "STORAGE_FAILED")
    await only_failure(server)


async def test_all_flagged_is_a_failure_that_costs_nothing(server: Server) -> None:
    server.runner.flagged = [0, 1]
    answer = await server.draw(num_outputs=2)
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "NSFW_CONTENT")
    assert (await only_failure(server))["errorCode"] == "NSFW_CONTENT"


async def test_some_flagged_are_not_stored_and_not_charged(server: Server) -> None:
    server.runner.flagged = [1]
    record = (await server.draw(num_outputs=3)).json()["aiRecord"]
    detail = record["aiRecordDetail"]
    assert record["status"] == "SUCCESS"
    assert detail["responseObject"]["flagged"] == [1]
    assert sorted(detail["resultObject"]) == await server.services.store.list_keys()
    assert len(detail["resultObject"]) == 2
    assert record["teamUser"]["usedCredit"] == 800


async def test_async_answers_at_once_and_the_result_follows(server: Server) -> None:
    server.runner.gate = asyncio.Event()
    uuid = await start_async(server)
    assert (await result(server, uuid))["status"] == "PROCESSING"
    server.runner.gate.set()
    await until(lambda: bool(server.runner.finished))
    await until(lambda: server.services.admission.find(uuid) is None)
    assert (await result(server, uuid))["status"] == "SUCCESS"


async def test_cancelling_stops_the_runner_and_costs_nothing(server: Server) -> None:
    server.runner.gate = asyncio.Event()
    uuid = await start_async(server)
    await until(lambda: bool(server.runner.jobs))
    answer = await server.client.post(f"/api/results/{uuid}/cancel")
    assert answer.json()["aiRecord"]["status"] == "FAILURE"
    assert server.runner.cancelled == [uuid]
    assert (await only_failure(server))["errorCode"] == "CANCELLED"


async def test_cancelling_a_finished_one_changes_nothing(server: Server) -> None:
    uuid = (await server.draw()).json()["aiRecord"]["uuid"]
    assert (await server.client.post(f"/api/results/{uuid}/cancel")).json()["aiRecord"]["status"] == "SUCCESS"


async def test_cancelling_while_someone_waits_tells_them(server: Server) -> None:
    server.runner.gate = asyncio.Event()
    waiting = asyncio.create_task(server.draw())
    await until(lambda: bool(server.runner.jobs))
    await server.client.post(f"/api/results/{server.runner.jobs[0].id}/cancel")
    answer = await waiting
    assert (answer.status_code, answer.json()["errorCode"]) == (409, "CANCELLED")
    assert answer.headers["x-should-retry"] == "false"


async def test_a_stream_tells_queue_steps_and_the_record(server: Server) -> None:
    events = []
    async with server.client.stream("POST", "/api/features?isStreaming=true", json=BODY) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in answer.aiter_lines() if line]
    for name, data in zip(lines[::2], lines[1::2], strict=True):
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    names = [name for name, _ in events]
    assert names[0] == "queued"
    assert [(data["step"], data["total"]) for name, data in events if name == "step"] == [(k, 4) for k in (1, 2, 3, 4)]
    assert events[-1][0] == "done"
    assert events[-1][1]["aiRecord"]["status"] == "SUCCESS"


async def test_a_stream_of_a_failure_ends_with_the_error(server: Server) -> None:
    server.runner.failure = GenerationFailedError("out of memory")
    async with server.client.stream("POST", "/api/features?isStreaming=true", json=BODY) as answer:
        lines = [line async for line in answer.aiter_lines() if line]
    assert lines[-2] == "event: error"
    assert json.loads(lines[-1].removeprefix("data: "))["errorCode"] == "GENERATION_FAILED"


async def test_a_refused_stream_is_a_plain_error(server: Server) -> None:
    answer = await server.client.post("/api/features?isStreaming=true", json=body_with(seed=-1))
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")


async def test_without_credits_the_request_is_refused_with_numbers(server: Server) -> None:
    who = await session(server)
    async with server.services.database.write() as connection:
        await change_member(connection, who["teamId"], who["userId"], credit_limit=399)
    answer = await server.draw()
    assert answer.status_code == 402
    assert answer.json()["errorCode"] == "INSUFFICIENT_CREDITS"
    assert "requires 400 credits" in answer.json()["message"]
    assert "only has 399 credits" in answer.json()["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert server.runner.jobs == []


async def test_a_team_may_be_forbidden_to_disable_the_safety_checker(server: Server) -> None:
    async with server.services.database.write() as connection:
        await change_team(connection, (await session(server))["teamId"], may_disable_safety=False)
    answer = await server.draw(disable_safety_checker=True)
    assert (answer.status_code, answer.json()["errorCode"]) == (403, "FORBIDDEN")
    assert (await server.draw()).status_code == 200


async def test_a_full_queue_refuses_without_charge(tmp_path: Path) -> None:
    runner = FakeRunner(gate=asyncio.Event())
    async with run_server(tmp_path, runner, queue_limit=3, team_queue_limit=2) as server:
        for _ in range(2):
            await start_async(server)
        answer = await server.draw()
        assert (answer.status_code, answer.json()["errorCode"]) == (429, "TEAM_QUEUE_FULL")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await session(server))["usedCredit"] == 800
        assert runner.gate is not None
        runner.gate.set()


async def test_rate_limits_are_told_and_kept(tmp_path: Path) -> None:
    async with run_server(tmp_path, rate_limit="2/minute") as server:
        answers = [await server.draw() for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["1", "0", "0"]
        assert {answer.headers["x-ratelimit-limit"] for answer in answers} == {"2"}
        assert 1 <= int(answers[2].headers["retry-after"]) <= 60
        assert answers[2].json()["errorCode"] == "RATE_LIMITED"
        assert (await session(server))["usedCredit"] == 800


async def test_stopping_finishes_what_runs(tmp_path: Path) -> None:
    async with run_server(tmp_path, FakeRunner(step_seconds=0.05)) as server:
        uuid = await start_async(server)
        runner = server.runner
    assert runner.finished == [uuid]
    assert runner.closed


async def test_stopping_cancels_what_takes_longer_than_the_drain(tmp_path: Path) -> None:
    async with run_server(tmp_path, FakeRunner(gate=asyncio.Event()), drain_seconds=0.1) as server:
        uuid = await start_async(server)
    async with run_server(tmp_path) as server:
        assert (await result(server, uuid))["status"] == "FAILURE"
        assert (await session(server))["usedCredit"] == 0
