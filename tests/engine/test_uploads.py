"""The order of copies and steps, on streams that note what is asked of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from schnell.engine.uploads import Uploads


@dataclass
class Stream:
    name: str
    asked: list[str] = field(default_factory=list)

    def record_event(self) -> str:
        self.asked.append("mark")
        return f"{self.name}'s mark"

    def wait_event(self, event: str) -> None:
        self.asked.append(f"wait for {event}")


@pytest.fixture
def streams() -> tuple[Stream, Stream, Uploads]:
    beside, main = Stream("copies"), Stream("steps")

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        stream.asked.append("begin")
        yield
        stream.asked.append("end")

    return beside, main, Uploads(beside, lambda: main, on)


def test_copies_are_asked_on_their_own_stream_and_marked_behind(streams: tuple[Stream, Stream, Uploads]) -> None:
    beside, main, uploads = streams
    with uploads.copying():
        beside.asked.append("copy")
    assert beside.asked == ["begin", "copy", "end", "mark"]
    assert main.asked == []


def test_the_next_step_alone_waits_for_them(streams: tuple[Stream, Stream, Uploads]) -> None:
    _, main, uploads = streams
    with uploads.copying():
        pass
    uploads.wait()
    uploads.wait()
    assert main.asked == ["wait for copies's mark"]


def test_a_step_before_any_copy_waits_for_nothing(streams: tuple[Stream, Stream, Uploads]) -> None:
    _, main, uploads = streams
    uploads.wait()
    assert main.asked == []


def test_copies_that_failed_half_way_are_waited_for_too(streams: tuple[Stream, Stream, Uploads]) -> None:
    beside, main, uploads = streams
    with pytest.raises(RuntimeError), uploads.copying():
        raise RuntimeError("CUDA out of memory")
    assert beside.asked[-1] == "mark"
    uploads.wait()
    assert main.asked == ["wait for copies's mark"]


def test_without_streams_copies_are_done_at_once() -> None:
    uploads, layer = Uploads.of(torch.device("cpu")), nn.Linear(2, 2)
    with uploads.copying(), torch.no_grad():
        layer.weight.fill_(1.0)
    uploads.wait()
    assert not uploads.are_beside
    assert layer.weight.sum() == 4
