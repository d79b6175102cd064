"""Waiting in tests for what nobody signals: a condition, or the state of a process."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path


async def until(condition: Callable[[], bool], seconds: float = 10, pause: float = 0.005) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for is not ours to signal
            await asyncio.sleep(pause)


def wait_for_state(pid: int, *states: str | None) -> None:
    """Wait until a process is in one of these states of proc_pid_stat(5), such as `T`; None once there is none."""
    ends = time.monotonic() + 10
    while _state_of(pid) not in states:
        assert time.monotonic() < ends
        time.sleep(0.001)


def _state_of(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return None
