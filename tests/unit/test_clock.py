from datetime import UTC, datetime, timedelta

import pytest

from schnell.clock import Stopwatch, now


def test_now_is_the_present_in_utc_cut_to_the_millisecond() -> None:
    before = datetime.now(UTC)
    moment = now()
    assert before - timedelta(milliseconds=1) < moment <= datetime.now(UTC)
    assert moment.tzinfo is UTC
    assert moment.microsecond % 1000 == 0


def test_a_stopwatch_adds_up_each_stage() -> None:
    watch = Stopwatch()
    watch.add("text", 1.5)
    watch.add("text", 2.0)
    watch.add("decode", 0.25)
    assert watch.seconds == {"text": 3.5, "decode": 0.25}


def test_a_stopwatch_counts_a_block_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([10.0, 12.5])
    monkeypatch.setattr("schnell.clock.perf_counter", lambda: next(readings))
    watch = Stopwatch()
    with pytest.raises(RuntimeError), watch.timing("decode"):
        raise RuntimeError
    assert watch.seconds == {"decode": 2.5}
