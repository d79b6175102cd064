"""A preview costs nothing: it waits for whoever pays, but not for ever."""

from typing import Any, cast

import pytest

from schnell.generations import loras
from schnell.generations.loras import LoraPreviews
from schnell.spec import RunnerSnapshot
from waiting import until


class OneAfterTheOther:
    """The runner of a client that asks for the next picture at once: whoever looks finds it idle, but a step further.

    `asked` is when a job came, by the number of looks before it.
    """

    def __init__(self) -> None:
        self.is_asked = True
        self.looks = 0
        self.asked: list[int] = []

    def snapshot(self) -> RunnerSnapshot:
        self.looks += 1
        return RunnerSnapshot(queued=0, active_rows=0, steps=self.looks if self.is_asked else 0)

    async def run(self, *_: Any) -> Any:
        self.asked.append(self.looks)
        return type("Outcome", (), {"images": ()})


class Library:
    async def resolve(self, *_: Any) -> tuple[()]:
        return ()


class Lora:
    id, owner = "00000001-0000-0000-0000-000000000000", "team"


def previews(runner: OneAfterTheOther) -> LoraPreviews:
    return LoraPreviews(cast("Any", runner), cast("Any", Library()))


async def test_a_preview_waits_while_pictures_are_drawn_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loras, "_PATIENCE", 0.001)
    monkeypatch.setattr(loras, "_QUIET_LOOKS", 5)
    runner = OneAfterTheOther()
    drawing = previews(runner)
    drawing.ask_for(cast("Any", Lora()))
    await until(lambda: runner.looks >= 50)
    assert not runner.asked
    runner.is_asked = False
    await until(lambda: bool(runner.asked))
    await drawing.close()


async def test_a_preview_is_drawn_at_last_on_a_server_that_is_never_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loras, "_PATIENCE", 0.001)
    monkeypatch.setattr(loras, "_LONGEST_WAIT", 0.2)
    runner = OneAfterTheOther()
    drawing = previews(runner)
    drawing.ask_for(cast("Any", Lora()))
    await until(lambda: bool(runner.asked))
    assert runner.asked[0] > 1
    await drawing.close()
