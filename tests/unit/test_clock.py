from datetime import UTC, timedelta

import pytest

from schnell.clock import Stopwatch, now


def test_the_present_is_in_utc_and_in_whole_milliseconds() -> None:
    moment = now()
    assert moment.tzinfo is UTC
    assert moment.microsecond % 1000 == 0
    assert timedelta(0) <= now() - moment


def test_a_stage_that_runs_again_is_added_up() -> None:
    watch = Stopwatch()
    watch.add("step", 1.5)
    watch.add("step", 0.5)
    watch.add("decode", 0.25)
    assert watch.seconds == {"step": 2.0, "decode": 0.25}


def test_a_stage_that_fails_counts_too() -> None:
    watch = Stopwatch()
    with pytest.raises(ValueError, match="half"), watch.timing("step"):
        raise ValueError("half a step")
    assert watch.seconds["step"] >= 0
