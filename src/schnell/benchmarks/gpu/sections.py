"""The sections in the order of their worth, and how one is run: in a process of its own, for so long and no longer."""

import logging
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import torch

from schnell.benchmarks.gpu.ceilings import ceilings
from schnell.benchmarks.gpu.compiled import compiled
from schnell.benchmarks.gpu.lab import Figure, Figures, Lab
from schnell.benchmarks.gpu.lora import lora
from schnell.benchmarks.gpu.parity import parity
from schnell.benchmarks.gpu.random_model import TINY_SHAPE, TRUE_SHAPE
from schnell.benchmarks.gpu.serve import serve
from schnell.benchmarks.gpu.small_cards import failures, small_cards
from schnell.benchmarks.gpu.steps import memory, picture, steps


@dataclass(frozen=True, slots=True)
class Section:
    """What is measured together, and the seconds it may take at most."""

    measure: Callable[[Lab], Figures]
    seconds: float


SECTIONS: Final[Mapping[str, Section]] = {
    "ceilings": Section(ceilings, 20),
    "parity": Section(parity, 40),
    "memory": Section(memory, 25),
    "steps": Section(steps, 40),
    "picture": Section(picture, 100),
    "lora": Section(lora, 40),
    "compiled": Section(compiled, 150),
    "serve": Section(serve, 60),
    "small_cards": Section(small_cards, 45),
    "failures": Section(failures, 20),
}
#: How long a section that is past its time may still take to end by itself, with what it has measured.
_GRACE_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a section ended: the seconds that it took, and what went wrong (None: nothing)."""

    seconds: float
    error: str | None


def run_section(
    section: Section, seconds: float, on_figure: Callable[[Figure], None], *, is_dry: bool, device: str = "cuda"
) -> Ending:
    """Measure one section for at most `seconds`. `on_figure` gets each figure as soon as it is known.

    In a process of its own: an error of the card spoils every later call of the process that met it, and a kernel that
    never ends can be stopped in no other way.
    """
    context: Any = multiprocessing.get_context(_way_to_start(device))
    receiver, sender = context.Pipe(duplex=False)
    start = perf_counter()
    process = context.Process(target=_measure, args=(section, seconds, sender, is_dry, device))
    process.start()
    sender.close()
    error: str | None = "not finished"
    try:
        error = _listen(receiver, start + seconds + _GRACE_SECONDS, on_figure)
    finally:
        # what is measured is told by now: a process that lingers (compilers, threads) must not take the next one's
        # time, nor stay behind on the card when this one is stopped
        process.join(_GRACE_SECONDS if error is None else 0)
        if process.is_alive():
            _end(process)
        process.join()
    return Ending(perf_counter() - start, error)


@cache
def _way_to_start(device: str) -> str:
    """Forked where that works, so that the libraries are imported once; else each process imports them again.

    A process that was forked from one which has touched the driver cannot use it, and a library may do so unasked.
    """
    if device == "cpu":
        return "fork"
    probe = multiprocessing.get_context("fork").Process(target=_use_card, args=(device,))
    probe.start()
    probe.join()
    return "spawn" if probe.exitcode else "fork"


def _use_card(device: str) -> None:
    torch.ones(1, device=device).item()


def _listen(receiver: "Connection[Any, Any]", until: float, on_figure: Callable[[Figure], None]) -> str | None:
    """Take figures until the section says how it ended, or is silent for too long."""
    try:
        while receiver.poll(max(0.0, until - perf_counter())):
            kind, value = receiver.recv()
            if kind == "end":
                return None if value is None else str(value)
            on_figure(value)
    except EOFError:
        return "the process ended without a word"
    return "cut off: its time was over"


def _end(process: Any) -> None:
    """Stop a section with all that it has started, such as compilers."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()


def _be_quiet() -> None:
    """What fails stands in the file; the table must not drown in log lines."""
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _measure(section: Section, seconds: float, sender: "Connection[Any, Any]", is_dry: bool, device: str) -> None:  # noqa: FBT001 - a process's arguments
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what the main process does then is no section's business
    _be_quiet()
    if is_dry:
        # with one thread nothing waits for the other where the machine has more to do than we
        torch.set_num_threads(1)
    error: str | None = None
    with tempfile.TemporaryDirectory(prefix="schnell-gpu-") as folder:
        shape = TINY_SHAPE if is_dry else TRUE_SHAPE
        lab = Lab(torch.device(device), shape, Path(folder), perf_counter() + seconds, is_dry)
        try:
            for figure in section.measure(lab):
                sender.send(("figure", figure))
                if lab.seconds_left() <= 0:
                    error = "its time was over before all was measured"
                    break
        except Exception as cause:  # noqa: BLE001 - whatever it was, it belongs in the file
            error = f"{type(cause).__name__}: {cause}"[:1000]
    sender.send(("end", error))
