"""What a section is given: the device, the network's size, the time it has, and how to take time on that device."""

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import torch

from schnell.benchmarks.gpu.random_model import Shape

GIB: Final = float(1 << 30)
#: A figure by its name within the section: a number, a yes or no, a few words, or a mapping of such.
Figure = tuple[str, Any]
Figures = Iterator[Figure]


@dataclass(frozen=True, slots=True)
class Lab:
    """One section's place to measure: a device, the size of the network, a folder of its own, and a time to be done by.

    `is_dry`: everything is small and on the CPU, to show that it runs; the figures mean nothing then. `deadline` is by
    `perf_counter`.
    """

    device: torch.device
    shape: Shape
    folder: Path
    deadline: float
    is_dry: bool = False

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a GPU of NVIDIA's (or AMD's, which torch calls the same)."""
        return self.device.type == "cuda"

    def seconds_left(self) -> float:
        """Until this section has to be done."""
        return self.deadline - perf_counter()

    def synchronize(self) -> None:
        """Wait until the device has done all that it was told."""
        if self.on_cuda:
            torch.cuda.synchronize(self.device)

    def milliseconds(self, action: Callable[[], object], times: int = 5) -> float:
        """The median time on the device of a call, after one that does not count."""
        action()
        return median(self._milliseconds_once(action) for _ in range(1 if self.is_dry else times))

    def _milliseconds_once(self, action: Callable[[], object]) -> float:
        if not self.on_cuda:
            start = perf_counter()
            action()
            return (perf_counter() - start) * 1e3
        event: Any = torch.cuda.Event  # without types in torch
        begin, end = event(enable_timing=True), event(enable_timing=True)
        self.synchronize()
        begin.record()
        action()
        end.record()
        self.synchronize()
        return float(begin.elapsed_time(end))

    def seconds(self, action: Callable[[], object], times: int = 5) -> float:
        """The median time by the clock of a call that ends with the device idle, after one that does not count."""

        def once() -> float:
            self.synchronize()
            start = perf_counter()
            action()
            self.synchronize()
            return perf_counter() - start

        once()
        return median(once() for _ in range(1 if self.is_dry else times))

    def attempt(self, name: str, measure: Callable[[], Any]) -> Figure:
        """One figure, or the error that came in its place: what follows it is measured all the same."""
        try:
            return name, measure()
        except Exception as error:  # noqa: BLE001 - whatever a kernel raises, the other figures must be taken
            text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        # after the handler: the traceback's frames, and the tensors in them, are gone by now
        self.free()
        return name, {"error": text}

    def free(self) -> None:
        """Give back what nobody holds any more."""
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()

    def allocated_gib(self) -> float:
        """What tensors hold on the device now; 0 on a CPU."""
        return torch.cuda.memory_allocated(self.device) / GIB if self.on_cuda else 0.0

    def peak_gib(self, action: Callable[[], object]) -> float:
        """The most that tensors held on the device during a call; 0 on a CPU."""
        if not self.on_cuda:
            action()
            return 0.0
        self.free()
        torch.cuda.reset_peak_memory_stats(self.device)
        action()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device) / GIB

    def say(self, line: str) -> None:
        """A line of progress, on stderr."""
        sys.stderr.write(f"  {line}\n")
