import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from schnell.benchmarks.gpu.lab import Figures, Lab
from schnell.benchmarks.gpu.sections import Section, run_section


def two_figures(lab: Lab) -> Figures:
    yield "first", 1.0
    yield "second", lab.device.type


def fails_half_way(_: Lab) -> Figures:
    yield "first", 1.0
    raise RuntimeError("an illegal memory access")


def hangs(_: Lab) -> Figures:
    yield "first", 1.0
    time.sleep(60)


def dies(_: Lab) -> Figures:
    yield "first", 1.0
    os._exit(7)


def lingers(_: Lab) -> Figures:
    yield "first", 1.0
    # a thread that is no daemon: the process waits for it when it ends
    threading.Thread(target=time.sleep, args=(60,)).start()


def goes_on_for_ever(_: Lab) -> Iterator[tuple[str, Any]]:
    while True:
        time.sleep(0.05)
        yield "again", 1.0


def run(measure: Any, seconds: float = 20.0) -> tuple[list[tuple[str, Any]], str | None]:
    figures: list[tuple[str, Any]] = []
    ending = run_section(Section(measure, seconds), seconds, figures.append, is_dry=True, device="cpu")
    return figures, ending.error


def test_every_figure_of_a_section_arrives() -> None:
    assert run(two_figures) == ([("first", 1.0), ("second", "cpu")], None)


def test_what_was_measured_before_an_error_is_kept_and_the_error_named() -> None:
    figures, error = run(fails_half_way)
    assert figures == [("first", 1.0)]
    assert error == "RuntimeError: an illegal memory access"


def test_a_section_that_hangs_is_cut_off_with_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schnell.benchmarks.gpu.sections._GRACE_SECONDS", 0.5)
    figures, error = run(hangs, seconds=0.5)
    assert figures == [("first", 1.0)]
    assert error == "cut off: its time was over"


def test_a_process_that_lingers_after_its_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schnell.benchmarks.gpu.sections._GRACE_SECONDS", 0.5)
    begin = time.perf_counter()
    assert run(lingers) == ([("first", 1.0)], None)
    assert time.perf_counter() - begin < 30


def test_a_process_that_dies_is_reported() -> None:
    figures, error = run(dies)
    assert figures == [("first", 1.0)]
    assert error == "the process ended without a word"


def test_a_section_ends_between_two_figures_when_its_time_is_over() -> None:
    figures, error = run(goes_on_for_ever, seconds=0.3)
    assert figures
    assert error == "its time was over before all was measured"


def tells_its_number_and_hangs(_: Lab) -> Figures:
    yield "process", os.getpid()
    time.sleep(60)


def test_a_check_that_is_stopped_leaves_no_section_behind() -> None:
    told: list[tuple[str, Any]] = []

    def stopped_meanwhile(figure: tuple[str, Any]) -> None:
        told.append(figure)
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        run_section(Section(tells_its_number_and_hangs, 60), 60, stopped_meanwhile, is_dry=True, device="cpu")
    with pytest.raises(ProcessLookupError):
        os.kill(told[0][1], 0)
