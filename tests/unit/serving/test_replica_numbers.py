"""How many replicas there should be, by seconds of work; and that one machine does without Ray."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from schnell.serving.ray_cluster import queue_seconds_policy

SECONDS = st.lists(st.floats(0, 1000), min_size=1, max_size=20)


def wanted(seconds: list[float], target: float, busy: int) -> float:
    metrics = {
        "queue_seconds": dict(enumerate(seconds)),
        "target_seconds": dict.fromkeys(range(len(seconds)), target),
        "jobs": {index: float(index < busy) for index in range(len(seconds))},
    }
    return queue_seconds_policy(cast("Any", SimpleNamespace(aggregated_metrics=metrics)))[0]


def test_as_many_as_draw_what_waits_in_the_time_that_is_set() -> None:
    assert wanted([25.0, 20.0], target=10.0, busy=2) == 5
    assert wanted([0.0, 0.0], target=10.0, busy=0) == 0


def test_without_replicas_nothing_is_known_and_none_is_asked_for() -> None:
    assert queue_seconds_policy(cast("Any", SimpleNamespace(aggregated_metrics=None)))[0] == 0


@given(SECONDS, st.floats(0.1, 100), st.integers(0, 20))
def test_no_more_go_than_are_idle(seconds: list[float], target: float, busy: int) -> None:
    busy = min(busy, len(seconds))
    assert wanted(seconds, target, busy) >= busy


@given(SECONDS, st.floats(0.1, 100))
def test_those_there_are_to_be_draw_it_in_time(seconds: list[float], target: float) -> None:
    assert wanted(seconds, target, busy=0) * target >= sum(seconds) - 1e-6


def test_a_server_of_one_machine_imports_no_ray() -> None:
    code = (
        "import sys, schnell.cli.application as a, schnell.cli.http_server; a.build_app(); print('ray' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
