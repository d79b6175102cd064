"""LoRA factors on their way from host memory into slots, beside the steps that a GPU is busy with.

A GPU copies while it computes, if the copy is asked on a stream of its own and reads pinned host memory. Nothing waits
for such a copy but what reads the slot: the next step that uses it, and even that only on the device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch


class Stream(Protocol):
    """What is used of `torch.cuda.Stream`; tests have one that notes the order of calls."""

    def record_event(self) -> Any:
        """A mark behind all that was asked of the stream so far."""

    def wait_event(self, event: Any) -> None:
        """Let what is asked of the stream from now on wait for a mark of another."""


class Uploads:
    """Copies into slots beside the steps of one device. Without streams (on a CPU) they are done when asked.

    `beside` is the stream of the copies, `main` gives the one that steps run on, `on` makes a stream the current one
    for a block. Whoever copies sees to it that no step under way reads the slot: the queue gives a slot away when those
    who leased it have ended.
    """

    def __init__(
        self,
        beside: Stream | None = None,
        main: Callable[[], Stream] | None = None,
        on: Callable[[Any], Any] | None = None,
    ) -> None:
        self._beside, self._main, self._on = beside, main, on
        self._last: Any = None

    @classmethod
    def of(cls, device: torch.device) -> "Uploads":
        """Those of a device."""
        if device.type != "cuda":
            return cls()
        make_stream: Any = torch.cuda.Stream  # without types in torch
        stream: Stream = make_stream(device)
        # the stream that is current in the calling thread: steps run on that of the thread which owns the engine
        return cls(stream, lambda: torch.cuda.current_stream(device), torch.cuda.stream)

    @property
    def are_beside(self) -> bool:
        """Whether copies overlap with steps at all."""
        return self._beside is not None

    @contextmanager
    def copying(self) -> Iterator[None]:
        """Ask for copies in this block: it ends at once, the copies may not have begun."""
        if self._beside is None or self._on is None:
            yield
            return
        try:
            with self._on(self._beside):
                yield
        finally:
            # also where the block failed: half a LoRA may be on its way, and the slot is emptied behind it
            self._last = self._beside.record_event()

    def wait(self) -> None:
        """Let the next step wait, on the device, for the copies that were asked so far."""
        if self._last is not None and self._main is not None:
            self._main().wait_event(self._last)
            self._last = None
