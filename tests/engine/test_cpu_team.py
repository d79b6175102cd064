"""Threads spin while they are alone and sleep beside others; what is counted here is what libgomp and Linux count."""

import itertools
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from schnell.engine import cpu_team
from schnell.engine.cpu_team import CpuTeam, Neighbours, Usage, WaitPolicy, read_busy_seconds


def step(policy: WaitPolicy, now: float, *, cores: float = 2.0, others: float | None = None) -> bool:
    """A step of a fifth of a second that used so many cores; others use `others`. Whether the team spun in it."""
    spun = policy.spins
    policy.learn(Usage(now, 0.0), Usage(now + 0.2, cores * 0.2), others)
    return spun


def test_a_team_that_has_its_cores_for_itself_spins() -> None:
    policy = WaitPolicy(2, 2)
    assert all(step(policy, number, cores=1.9, others=0.1) for number in range(100))


def test_a_team_that_loses_a_core_sleeps_until_nobody_else_uses_it() -> None:
    policy = WaitPolicy(2, 2)
    step(policy, 0, cores=1.2)
    assert not any(step(policy, number, cores=1.0, others=1.0) for number in range(1, 100))
    assert not step(policy, 101, cores=1.3, others=0.0)
    assert step(policy, 102, cores=2.0)


def test_without_news_of_others_a_team_goes_on_as_it_is() -> None:
    policy = WaitPolicy(2, 2)
    step(policy, 0, cores=1.0)
    assert not any(step(policy, number, cores=1.0) for number in range(1, 100))


def test_others_on_cores_that_the_team_leaves_free_do_not_count() -> None:
    policy = WaitPolicy(2, 8)
    step(policy, 0, cores=1.0)
    step(policy, 1, others=6.0)
    assert step(policy, 2)


def test_spinning_that_fails_again_and_again_is_tried_more_and_more_rarely() -> None:
    policy = WaitPolicy(2, 2)
    tried = [number for number in range(1000) if step(policy, number / 5, cores=1.0, others=0.0)]
    gaps = [after - before for before, after in itertools.pairwise(tried)]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 8 * gaps[0]


def test_one_disturbed_step_after_many_that_were_not_costs_a_short_rest_each_time() -> None:
    policy = WaitPolicy(2, 2)
    spun = [step(policy, number / 5, cores=1.0 if number % 20 == 0 else 2.0, others=0.0) for number in range(1000)]
    assert sum(spun) > 800


def test_others_are_what_the_machine_was_busy_with_less_what_was_ours() -> None:
    busy = iter((100.0, 100.2, 100.2, 101.0, 101.0, 101.5))
    neighbours = Neighbours(lambda: next(busy))
    neighbours.begin(Usage(10.0, 5.0))
    assert neighbours.end(Usage(10.1, 5.1)) is None  # too soon: the kernel counts in hundredths of a second
    neighbours.begin(Usage(10.1, 5.1))
    assert neighbours.end(Usage(10.5, 5.5)) == pytest.approx(1.0)
    neighbours.begin(Usage(10.5, 5.5))
    assert neighbours.end(Usage(11.5, 6.0)) == pytest.approx(0.0)


def test_what_others_use_between_steps_does_not_count() -> None:
    busy = iter((100.0, 100.5, 103.0, 103.5))
    neighbours = Neighbours(lambda: next(busy))
    for began, used in ((10.0, 5.0), (13.0, 5.5)):
        neighbours.begin(Usage(began, used))
        assert neighbours.end(Usage(began + 0.5, used + 0.5)) == pytest.approx(0.0)


def test_where_nothing_is_counted_nothing_is_said_of_others() -> None:
    neighbours = Neighbours(lambda: None)
    neighbours.begin(Usage(0.0, 0.0))
    assert neighbours.end(Usage(1.0, 0.0)) is None


linux = pytest.mark.skipif(sys.platform != "linux", reason="libgomp and its counting")


def compute() -> bytes:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
    return (left @ right).softmax(-1).numpy().tobytes()


@linux
def test_the_crowd_comes_and_goes_and_no_result_depends_on_it() -> None:
    crowd = cpu_team._Crowd.beside(max(2, torch.get_num_threads()))
    assert crowd is not None

    def run() -> set[bytes]:
        results = set()
        for is_there in (False, True, True, False, True, False):
            crowd.stand(is_there=is_there)
            # by its own thread: an engine of another test may have a crowd beside its team, too
            assert (crowd._thread is not None and crowd._thread.is_alive()) == is_there
            results.add(compute())
        return results

    with ThreadPoolExecutor(1) as engine_thread:
        assert len(engine_thread.submit(run).result()) == 1


@linux
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a team of one never waits")
def test_a_crowd_lets_waiting_threads_sleep() -> None:
    """Between two operations a spinning thread uses its core; asleep it uses none."""

    def used_while_nothing_happens(crowd: cpu_team._Crowd, *, is_there: bool) -> float:
        crowd.stand(is_there=is_there)
        used = 0.0
        for _ in range(100):
            large.add_(1)
            before = time.process_time()
            time.sleep(0.001)
            used += time.process_time() - before
        return used

    large, crowd = torch.zeros(1 << 20), cpu_team._Crowd.beside(2)
    assert crowd is not None

    def run() -> tuple[float, float]:
        torch.set_num_threads(2)
        try:
            return used_while_nothing_happens(crowd, is_there=False), used_while_nothing_happens(crowd, is_there=True)
        finally:
            crowd.stand(is_there=False)
            torch.set_num_threads(threads)

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as engine_thread:
        spinning, asleep = engine_thread.submit(run).result()
    # processor time, which other load on the machine takes from nobody's count
    assert asleep < spinning


@linux
def test_the_kernel_tells_how_busy_the_machine_is() -> None:
    """This process's own use is part of it."""
    before, own = read_busy_seconds(), time.process_time()
    while time.process_time() - own < 0.5:
        pass
    after = read_busy_seconds()
    assert before is not None
    assert after is not None
    assert after - before > 0.4


@linux
def test_short_turns_are_the_calling_threads_alone() -> None:
    def turn() -> int:
        attributes = cpu_team._SchedAttr()
        cpu_team.read_turn(attributes)
        return int(attributes.runtime)

    before = turn()
    with ThreadPoolExecutor(1) as other:
        other.submit(CpuTeam(2).take_short_turns).result()
        assert other.submit(turn).result() in {cpu_team._TURN_NS, before}  # kernels before 6.12 have no such turns
    assert turn() == before
