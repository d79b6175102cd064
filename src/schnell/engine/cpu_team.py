"""How the threads of a CPU's matrix products wait for each other: spinning while they are alone, asleep beside others.

torch shares every operation among a team of OpenMP threads, one a core, which meet at a barrier after each. libgomp
lets whoever is there first spin for some milliseconds. Alone that is right: a thread that sleeps takes tens of
microseconds to wake, which is as long as a small operation lasts. Beside another busy process it is ruin: the thread
that spins uses up its share of the machine, and loses its core just when it is waited for. Measured on two cores in
docs/decisions/0062.

Nothing here changes how many threads compute, so no picture's bytes depend on it.
"""

import ctypes
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch

#: Cores of the team's own that others may have had, on average over so many seconds of steps at least, before it stops
#: to spin: one short step that somebody disturbed says little about the next ones.
_CORES_LOST: Final = 0.4
_LOST_WINDOW: Final = 0.15
#: Cores that others may be using beyond those that the team leaves them, before it spins again: a client that reads its
#: answers is no busy neighbour.
_CORES_SHARED: Final = 0.25
#: Seconds of steps over which the use of the whole machine is counted, at least: the kernel counts it in hundredths.
_WINDOW: Final = 0.1
#: Seconds that a team sleeps at least, and at most, before it spins again; doubled whenever it then spun for less.
_SHORTEST_REST, _LONGEST_REST = 0.1, 30.0
#: The kernel lets a thread that wakes and asks for shorter turns go before one in the middle of a longer turn
#: (EEVDF, Linux 6.12; 2.8 ms or less by default). The total of its turns stays its fair share.
_TURN_NS: Final = 400_000
_SYSCALLS: Final = {"x86_64": (314, 315), "aarch64": (274, 275)}  # sched_setattr, sched_getattr
#: Further threads that `_Crowd` may start: they sleep, but each has a stack.
_LARGEST_CROWD: Final = 64


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor seconds that this process has used at a time, over all its threads."""

    seconds: float
    processor_seconds: float

    @classmethod
    def now(cls) -> Self:
        """As of now."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.perf_counter(), used.ru_utime + used.ru_stime)


class Neighbours:
    """How many cores other processes use in steps, on average, from what the kernel counts of the whole machine.

    What they use between steps holds up nobody: some of them run only then (`schnell.side_processes`).
    """

    def __init__(self, read_busy: Callable[[], float | None] | None = None) -> None:
        self._read_busy = read_busy or read_busy_seconds
        self._began: tuple[Usage, float] | None = None
        self._seconds = self._used = 0.0

    def begin(self, now: Usage) -> None:
        """A step begins."""
        busy = self._read_busy()
        self._began = None if busy is None else (now, busy)

    def end(self, now: Usage) -> float | None:
        """It ends: the cores since the last answer; None after too few steps, and where nothing is counted."""
        began, busy = self._began, self._read_busy()
        if began is None or busy is None:
            return None
        seconds, ours = now.seconds - began[0].seconds, now.processor_seconds - began[0].processor_seconds
        self._seconds += seconds
        self._used += busy - began[1] - ours
        if self._seconds < _WINDOW:
            return None
        cores = max(0.0, self._used) / self._seconds
        self._seconds = self._used = 0.0
        return cores


def read_busy_seconds() -> float | None:
    """Seconds since the start of the machine in which its cores were not idle, all together; None if it does not say.

    Time that a hypervisor gave to other machines counts for none of ours. See proc_stat(5).
    """
    try:
        with Path("/proc/stat").open("rb") as file:
            user, nice, system, _, _, irq, soft_irq = map(int, file.readline().split()[1:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")


class WaitPolicy:
    """Decides whether a team of `threads` spins on a machine of so many `cores`, from what each step used."""

    def __init__(self, threads: int, cores: int) -> None:
        self._threads = threads
        self._spare = max(0, cores - threads)
        self._rest, self._until, self._began = _SHORTEST_REST, 0.0, 0.0
        self._seconds = self._lost = 0.0
        self.spins = True

    def learn(self, before: Usage, after: Usage, neighbours: float | None) -> None:
        """Take in what a step used, and how many cores others do (None: no news of them)."""
        if self.spins:
            seconds = after.seconds - before.seconds
            self._seconds += seconds
            self._lost += self._threads * seconds - (after.processor_seconds - before.processor_seconds)
            if self._seconds >= _LOST_WINDOW:
                if self._lost > _CORES_LOST * self._seconds:
                    self._stop_spinning(after.seconds)
                self._seconds = self._lost = 0.0
        elif neighbours is not None and neighbours <= self._spare + _CORES_SHARED and after.seconds > self._until:
            self.spins, self._began = True, after.seconds

    def _stop_spinning(self, now: float) -> None:
        held = now - self._began - self._seconds
        # where it held for as long as the rest before it, it was worth that, and may soon be again
        self._rest = _SHORTEST_REST if held >= self._rest else min(2 * self._rest, _LONGEST_REST)
        self.spins, self._until = False, now + self._rest


class CpuTeam:
    """The OpenMP threads of one engine thread. Where there is no libgomp, or one core, everything here does nothing."""

    def __init__(self, threads: int) -> None:
        self._crowd = _Crowd.beside(threads) if threads > 1 and sys.platform == "linux" else None
        self._policy = WaitPolicy(threads, os.cpu_count() or threads)
        self._neighbours = Neighbours()

    @classmethod
    def of(cls, device: torch.device) -> Self:
        """The team that torch computes with on this device: on others than a CPU, nobody's."""
        return cls(torch.get_num_threads() if device.type == "cpu" else 1)

    def take_short_turns(self) -> None:
        """Let the calling thread, and those that it starts, go ahead of busy neighbours when they wake."""
        if self._crowd is not None:
            _set_turn(_TURN_NS)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Compute a step in the block."""
        if self._crowd is None:
            yield
            return
        self._crowd.stand(is_there=not self._policy.spins)
        before, sleeps = Usage.now(), not self._policy.spins
        if sleeps:
            self._neighbours.begin(before)
        yield
        after = Usage.now()
        self._policy.learn(before, after, self._neighbours.end(after) if sleeps else None)


class _Crowd:
    """A thread with an idle team of its own. While it is there, libgomp counts more threads than cores, and lets every
    thread of the process sleep at barriers instead of spin (`gomp_throttled_spin_count_var`).

    That is the one way to change its policy: the environment is read once, when the library is loaded.
    """

    def __init__(self, gomp: Any, size: int) -> None:
        self._gomp, self._size = gomp, size
        self._leaving: threading.Event | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def beside(cls, threads: int) -> Self | None:
        """One for a team of so many threads; None where torch computes with another OpenMP than libgomp."""
        try:
            # the one that torch has loaded, or none
            gomp = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            return None
        size = len(os.sched_getaffinity(0)) - threads + 2
        return cls(gomp, size) if 2 <= size <= _LARGEST_CROWD else None

    def stand(self, *, is_there: bool) -> None:
        """Be there, or not; returns once libgomp counts it so."""
        if is_there == (self._thread is not None):
            return
        if is_there:
            self._leaving, here = threading.Event(), threading.Event()
            self._thread = threading.Thread(
                target=self._wait, args=(here, self._leaving), name="schnell-crowd", daemon=True
            )
            self._thread.start()
            here.wait()
        elif self._thread is not None and self._leaving is not None:
            self._leaving.set()
            self._thread.join()
            self._thread = None

    def _wait(self, here: threading.Event, leaving: threading.Event) -> None:
        # a team that has nothing to do: each of its threads calls free(NULL)
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)
        self._gomp.GOMP_parallel(nothing, None, ctypes.c_uint(self._size), ctypes.c_uint(0))
        here.set()
        leaving.wait()


class _SchedAttr(ctypes.Structure):
    """`struct sched_attr`, https://man7.org/linux/man-pages/man2/sched_setattr.2.html."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def read_turn(attributes: _SchedAttr) -> bool:
    """Read the calling thread's scheduling; False where this is not Linux on a processor that is known here."""
    numbers = _SYSCALLS.get(platform.machine())
    if numbers is None or sys.platform != "linux":
        return False
    return not _syscall(numbers[1], 0, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)


def _set_turn(nanoseconds: int) -> None:
    """Change the length of the calling thread's turns, and nothing else of its scheduling. No privilege is needed."""
    attributes = _SchedAttr()
    # another policy than the default was given by somebody who knows why. What the kernel refuses stays as it was
    if read_turn(attributes) and attributes.policy == os.SCHED_OTHER:
        attributes.runtime = nanoseconds
        _syscall(_SYSCALLS[platform.machine()][0], 0, ctypes.byref(attributes), 0)


def _syscall(*arguments: Any) -> int:
    return int(ctypes.CDLL(None).syscall(*arguments))
