"""Processes of this server that a CPU's steps pause, so that none runs beside a step.

The threads that compute a step on a CPU meet at a barrier after every operation. A process beside them holds one of
them up at most barriers, whatever its priority, so a step takes twice as long; between steps it holds up nobody.
Measured in docs/decisions/0083.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Seconds that the processes have after a step, at least, for each second that it took.
_SHARE: Final = 0.2


class SideProcesses:
    """The processes that run only between steps, from any thread.

    On systems other than Linux they run beside the steps: nothing there would end them with a server that is killed
    while they are paused.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        # file descriptors, as another process may get the number of one that has ended
        self._processes: set[int] = set()
        self._steps = 0
        self._due = 0.0

    @contextmanager
    def pausing(self, pid: int) -> Iterator[None]:
        """Pause a child process, not yet waited for, while a step is computed; until the end of the block."""
        try:
            process = os.pidfd_open(pid) if sys.platform == "linux" else -1
        except OSError:  # it has ended already, or the kernel is older than 5.3
            process = -1
        if process < 0:
            yield
            return
        with self._changed:
            self._processes.add(process)
            if self._steps:
                _send(process, signal.SIGSTOP)
        try:
            yield
        finally:
            with self._changed:
                self._processes.remove(process)
                self._changed.notify_all()
                # whoever ends the block before the process has ended wants it to go on, or to find its end
                _send(process, signal.SIGCONT)
            os.close(process)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Compute a step in the block. The processes first get what is due to them since the last one."""
        with self._changed:
            self._changed.wait_for(lambda: not self._processes, max(0.0, self._due - time.monotonic()))
            self._steps += 1
            self._send_all(signal.SIGSTOP)
        began = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._steps -= 1
                if not self._steps:
                    now = time.monotonic()
                    self._due = now + _SHARE * (now - began)
                    self._send_all(signal.SIGCONT)

    def _send_all(self, number: signal.Signals) -> None:
        for process in self._processes:
            _send(process, number)


def _send(process: int, number: signal.Signals) -> None:
    # it has ended, or a sandbox forbids the call: then it runs beside the steps
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(process, number)
