import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from schnell.errors import ClientGoneError, NotFoundError
from schnell.web.submission import _unless_disconnected, _until_disconnected, idempotency_key_in


def request_with(*headers: tuple[bytes, bytes], closed: asyncio.Event | None = None) -> Request:
    async def receive() -> Message:
        if closed is None:
            return {"type": "http.disconnect"}
        await closed.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "headers": headers}, receive)


async def give(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def test_the_idempotency_key_is_read_from_its_header() -> None:
    assert idempotency_key_in(request_with((b"idempotency-key", b"abc"))) == "abc"
    assert idempotency_key_in(request_with()) is None


async def test_what_ends_while_the_client_waits_is_given() -> None:
    record: Any = object()
    async with _until_disconnected(request_with(closed=asyncio.Event())) as disconnected:
        assert await _unless_disconnected(disconnected, give(record)) is record
        assert not disconnected.done()
    with pytest.raises(asyncio.CancelledError):
        await disconnected


async def test_a_failure_reaches_the_client_that_waits() -> None:
    async def fail() -> Any:
        raise NotFoundError("gone")

    async with _until_disconnected(request_with(closed=asyncio.Event())) as disconnected:
        with pytest.raises(NotFoundError):
            await _unless_disconnected(disconnected, fail())


async def test_a_closed_connection_ends_the_wait_and_cancels_what_was_waited_for() -> None:
    closed, left = asyncio.Event(), asyncio.Event()

    async def wait() -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with _until_disconnected(request_with(closed=closed)) as disconnected:
        waiting = asyncio.ensure_future(_unless_disconnected(disconnected, wait()))
        await asyncio.sleep(0)
        assert not waiting.done()
        closed.set()
        with pytest.raises(ClientGoneError):
            await waiting
    async with asyncio.timeout(5):
        await left.wait()
