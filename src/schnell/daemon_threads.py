"""Calls that may hang for long, in threads that a process which ends does not wait for.

Python waits at its end for the threads of `concurrent.futures` and of anyio, so a bucket or a name server that says
nothing would keep a stopped server for a minute and a half, until something kills it.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

_Answer = TypeVar("_Answer")
_Call = tuple["Future[Any]", Callable[[], Any]]


class DaemonThreads:
    """At most `most` threads, each started when no other is free; for use from any event loop."""

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._free = threading.Semaphore(0)
        self._count, self._starting, self._is_closed = 0, threading.Lock(), False

    async def run(self, function: Callable[..., _Answer], *arguments: Any) -> _Answer:
        """What `function` returns or raises.

        Cancelled, it is left to itself in its thread; one whose turn has not come is not run at all.

        Raises:
            RuntimeError: the threads are closed, and nothing would ever run it.
        """
        if self._is_closed:
            raise RuntimeError(f"the threads for {self._name} are closed")
        call: Future[_Answer] = Future()
        self._calls.put((call, partial(function, *arguments)))
        self._start_if_needed()
        return await asyncio.wrap_future(call)

    def close(self) -> None:
        """Take no more calls, and let every thread end after what it does now and what waits."""
        with self._starting:
            self._is_closed = True
            for _ in range(self._count):
                self._calls.put(None)

    def _start_if_needed(self) -> None:
        if self._free.acquire(blocking=False):
            return
        with self._starting:
            if self._count < self._most:
                self._count += 1
                threading.Thread(target=self._work, name=f"{self._name}-{self._count}", daemon=True).start()

    def _work(self) -> None:
        while (taken := self._calls.get()) is not None:
            call, function = taken
            answer = _answer(call, function) if call.set_running_or_notify_cancel() else None
            # Free before the caller hears of it: its next call, made at once, has to find this thread.
            self._free.release()
            if answer is not None:
                answer()
            del taken, call, function, answer  # or this thread would keep a picture until its next turn


def _answer(call: "Future[Any]", function: Callable[[], Any]) -> Callable[[], None]:
    """Run `function`, and return what tells `call` how that ended."""
    try:
        return partial(call.set_result, function())
    except BaseException as error:  # noqa: BLE001 - it is the caller's, as in concurrent.futures
        return partial(call.set_exception, error)
