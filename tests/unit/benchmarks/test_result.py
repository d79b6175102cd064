import threading

import pytest

from schnell.benchmarks import result
from schnell.benchmarks.result import BenchmarkResult, compare_seconds, in_own_thread, median_pair


def test_a_result_names_the_command_that_makes_it_again() -> None:
    printed = BenchmarkResult(ours=2.0, unit="s", ours_is="a request", details={"mean_s": 3.0}).to_json("joining")
    assert printed["command"] == "schnell bench --only joining --json"
    assert (printed["ours"], printed["peer"], printed["ratio"]) == (2.0, None, None)
    assert printed["details"] == {"mean_s": 3.0}


def test_two_calls_are_made_in_turns_after_one_each_that_does_not_count() -> None:
    calls: list[str] = []
    median_pair(lambda: calls.append("ours"), lambda: calls.append("peer"), times=3)
    assert calls == ["ours", "peer"] * 4


def test_a_device_that_returns_at_once_is_waited_for_before_and_after_what_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, pending = [0.0], [0.0]

    def work(seconds: float) -> None:
        pending[0] += seconds  # the call itself takes no time

    def settle() -> None:
        now[0] += pending[0]
        pending[0] = 0.0

    monkeypatch.setattr(result, "perf_counter", lambda: now[0])
    assert median_pair(lambda: work(2.0), lambda: work(3.0), 5, settle) == (2.0, 3.0)


def test_the_ratio_is_ours_over_the_peers() -> None:
    found = compare_seconds(lambda: sum(range(1000)), lambda: None, ours_is="a sum", peer_is="nothing", times=3)
    assert found.peer is not None
    assert found.ratio == pytest.approx(found.ours / found.peer)
    assert (found.unit, found.ours_is, found.peer_is) == ("s", "a sum", "nothing")


def test_the_own_thread_has_ended_when_its_result_is_there() -> None:
    thread = in_own_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_what_fails_in_the_own_thread_fails_here() -> None:
    def fail() -> None:
        raise ValueError("no peft")

    with pytest.raises(ValueError, match="no peft"):
        in_own_thread(fail)
