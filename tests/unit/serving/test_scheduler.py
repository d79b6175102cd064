from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schnell.errors import ServerBusyError
from schnell.serving.scheduler import Entry, QueueLimits, RowKey, Scheduler

BATCH_LIMIT = 3
SLOTS = 2


def scheduler(**options: object) -> Scheduler[str]:
    return Scheduler(lambda _: BATCH_LIMIT, adapter_slots=SLOTS, **options)  # type: ignore[arg-type]


def entry(job_id: str, team: str = "team", lane: str = "square", **values: object) -> Entry[str]:
    return Entry(**({"job_id": job_id, "team_id": team, "lane": lane, "outputs": 1, "steps": 4, "tokens": 64} | values))  # type: ignore[arg-type]


def run_step(schedule: Scheduler[str]) -> tuple[RowKey, ...]:
    batch = schedule.next_batch()
    assert batch is not None
    return schedule.complete_step(batch.rows)


def test_an_empty_schedule_has_no_batch() -> None:
    assert scheduler().next_batch() is None


def test_jobs_with_different_step_counts_share_a_batch_and_leave_when_done() -> None:
    schedule = scheduler()
    schedule.add(entry("short", steps=1))
    schedule.add(entry("long", steps=4))
    assert run_step(schedule) == (RowKey("short", 0),)
    assert [run_step(schedule) for _ in range(3)] == [(), (), (RowKey("long", 0),)]


def test_a_newcomer_joins_at_the_next_step() -> None:
    schedule = scheduler()
    schedule.add(entry("first"))
    run_step(schedule)
    schedule.add(entry("second"))
    batch = schedule.next_batch()
    assert batch is not None
    assert [(row.key.job_id, row.step) for row in batch.rows] == [("first", 1), ("second", 0)]


def test_lanes_never_mix() -> None:
    schedule = scheduler()
    schedule.add(entry("a", lane="square"))
    schedule.add(entry("b", lane="wide"))
    batch = schedule.next_batch()
    assert batch is not None
    assert {row.lane for row in batch.rows} == {batch.lane}


def test_a_team_with_one_job_does_not_wait_for_a_team_with_fifty() -> None:
    schedule = Scheduler[str](lambda _: 1)
    for i in range(50):
        schedule.add(entry(f"crowd-{i}", team="crowd"))
    schedule.add(entry("single", team="lone"))
    finished = []
    while "single" not in finished:
        finished += [key.job_id for key in run_step(schedule)]
    assert len(finished) <= 2


def test_a_weight_of_three_gets_three_times_the_turns() -> None:
    schedule = Scheduler[str](lambda _: 1, weights={"heavy": 3.0})
    for i in range(40):
        schedule.add(entry(f"heavy-{i}", team="heavy", steps=1))
        schedule.add(entry(f"light-{i}", team="light", steps=1))
    served = Counter(key.job_id.split("-")[0] for _ in range(40) for key in run_step(schedule))
    assert served["heavy"] == 30


def test_more_loras_than_slots_wait_for_a_slot() -> None:
    schedule = scheduler()
    for name in ("red", "green", "blue"):
        schedule.add(entry(name, team=name, adapters=frozenset([name])))
    batch = schedule.next_batch()
    assert batch is not None
    assert len(frozenset[str]().union(*(row.adapters for row in batch.rows))) == SLOTS


def test_slots_held_by_another_lane_do_not_block_the_queue() -> None:
    schedule = scheduler()
    schedule.add(entry("a", lane="square", adapters=frozenset(["x", "y"])))
    run_step(schedule)
    schedule.add(entry("b", team="other", lane="wide", adapters=frozenset(["z"])))
    finished: list[str] = []
    for _ in range(7):
        finished += [key.job_id for key in run_step(schedule)]
    assert sorted(finished) == ["a", "b"]


@pytest.mark.parametrize(("limits", "word"), [(QueueLimits(jobs=1), "full"), (QueueLimits(jobs_per_team=1), "team")])
def test_a_full_queue_refuses(limits: QueueLimits, word: str) -> None:
    schedule = scheduler(limits=limits)
    schedule.add(entry("one"))
    with pytest.raises(ServerBusyError, match=word):
        schedule.add(entry("two"))


@dataclass
class Seen:
    added: list[tuple[str, str, str]] = field(default_factory=list)
    outputs: dict[str, int] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    removed: set[str] = field(default_factory=set)
    began: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))


class SchedulerMachine(RuleBasedStateMachine):
    """Random arrivals, steps, cancels and failures."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = scheduler()
        self.seen = Seen()

    @rule(
        team=st.sampled_from("abc"),
        lane=st.sampled_from(["square", "wide", "tall"]),
        outputs=st.integers(1, 4),
        steps=st.integers(1, 4),
        adapters=st.frozensets(st.sampled_from("xyz"), max_size=SLOTS),
    )
    def arrive(self, team: str, lane: str, outputs: int, steps: int, adapters: frozenset[str]) -> None:
        job_id = f"{len(self.seen.added)}"
        self.seen.added.append((job_id, team, lane))
        self.seen.outputs[job_id] = outputs
        self.schedule.add(entry(job_id, team, lane, outputs=outputs, steps=steps, adapters=adapters))

    @precondition(lambda self: self.schedule.job_count > 0)
    @rule()
    def step(self) -> None:
        batch = self.schedule.next_batch()
        assert batch is not None
        assert 1 <= len(batch.rows) <= BATCH_LIMIT
        assert {row.lane for row in batch.rows} == {batch.lane}
        assert not {row.key.job_id for row in batch.rows} & self.seen.removed
        for row in batch.rows:
            if not row.is_started and row.key.job_id not in self.seen.began[row.team_id, row.lane]:
                self.seen.began[row.team_id, row.lane].append(row.key.job_id)
        for key in self.schedule.complete_step(batch.rows):
            self.seen.ended[key.job_id] += 1

    @precondition(lambda self: self.seen.added)
    @rule(data=st.data())
    def cancel_or_fail(self, data: st.DataObject) -> None:
        job_id, _, _ = data.draw(st.sampled_from(self.seen.added))
        self.schedule.remove(job_id)
        if self.seen.ended[job_id] < self.seen.outputs[job_id]:
            self.seen.removed.add(job_id)

    @invariant()
    def no_output_ends_twice(self) -> None:
        assert all(self.seen.ended[job_id] <= outputs for job_id, outputs in self.seen.outputs.items())

    @invariant()
    def a_teams_jobs_of_one_size_begin_in_the_order_they_came(self) -> None:
        assert all(began == sorted(began, key=int) for began in self.seen.began.values())

    def teardown(self) -> None:
        steps = 0
        while self.schedule.job_count:
            self.step()
            steps += 1
            assert steps < 10_000
        for job_id, outputs in self.seen.outputs.items():
            assert self.seen.ended[job_id] == outputs or job_id in self.seen.removed


TestRandomTraffic = SchedulerMachine.TestCase
TestRandomTraffic.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["square", "wide"])), min_size=1, max_size=30))
def test_waiting_is_bounded_by_what_came_before(arrivals: list[tuple[str, str]]) -> None:
    schedule = Scheduler[str](lambda _: 1)
    for i, (team, lane) in enumerate(arrivals):
        schedule.add(entry(str(i), team, lane, steps=1))
    order = [key.job_id for _ in arrivals for key in run_step(schedule)]
    for i, (team, _) in enumerate(arrivals):
        ahead_of_own_team = sum(other == team for other, _ in arrivals[:i])
        assert order.index(str(i)) <= 2 * ahead_of_own_team + 1
