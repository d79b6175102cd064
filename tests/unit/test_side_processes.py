"""Processes beside the engine: paused in a step, due their part between two, and never left asleep."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from schnell import side_processes
from schnell.side_processes import SideProcesses
from waiting import wait_for_state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are paused on Linux alone")
PAUSED, RUNNING = ("T",), ("R", "S", "D")


@contextmanager
def running() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_process_is_paused_in_a_step_and_goes_on_after_it() -> None:
    beside = SideProcesses()
    with running() as process, beside.pausing(process.pid):
        for _ in range(3):
            with beside.step():
                wait_for_state(process.pid, *PAUSED)
            wait_for_state(process.pid, *RUNNING)


def test_a_process_that_comes_in_a_step_is_paused_at_once_and_goes_on_when_it_is_let_go() -> None:
    beside = SideProcesses()
    with running() as process, beside.step():
        with beside.pausing(process.pid):
            wait_for_state(process.pid, *PAUSED)
        wait_for_state(process.pid, *RUNNING)


def test_a_process_goes_on_only_after_the_last_of_several_steps() -> None:
    beside = SideProcesses()
    with running() as process, beside.pausing(process.pid):
        with beside.step():
            with beside.step():
                pass
            wait_for_state(process.pid, *PAUSED)
        wait_for_state(process.pid, *RUNNING)


def test_the_next_step_waits_until_the_processes_had_their_part_of_the_last_one() -> None:
    beside = SideProcesses()
    with running() as process, beside.pausing(process.pid):
        with beside.step():
            time.sleep(0.4)
        began = time.monotonic()
        with beside.step():
            assert time.monotonic() - began >= 0.07


def test_the_next_step_waits_for_no_process_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_processes, "_SHARE", 10_000)
    beside, ended = SideProcesses(), threading.Event()

    def hold(pid: int) -> None:
        with beside.pausing(pid):
            ended.wait()

    with running() as process:
        holding = threading.Thread(target=hold, args=(process.pid,))
        holding.start()
        with beside.step():
            time.sleep(0.1)
        threading.Timer(0.1, ended.set).start()
        with beside.step():  # or it would wait for a quarter of an hour
            pass
        holding.join()


def test_a_process_that_has_ended_already_is_nobodys() -> None:
    beside = SideProcesses()
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        with beside.pausing(process.pid), beside.step():
            pass
