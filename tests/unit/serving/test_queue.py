import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schnell.errors import AdapterError, GenerationFailedError
from schnell.serving.jobs import Batch, QueuedJob, Row
from schnell.serving.queue import JobQueue
from schnell.spec import AdapterUse, GenerationSpec, Job, JobOutcome, Progress

BATCH_LIMIT = 3
SLOTS = 4
DRAWN = JobOutcome(())


def queue(limit: int = BATCH_LIMIT, slots: int = SLOTS, **options: object) -> JobQueue[str]:
    return JobQueue(lambda _: limit, adapter_slots=slots, **options)  # type: ignore[arg-type]


def add(
    jobs: JobQueue[str], name: str, team: str = "team", lane: str = "square", loras: str = "", **spec: int
) -> QueuedJob[str]:
    adapters = tuple(AdapterUse(each, each, Path(each), 1.0) for each in dict.fromkeys(loras))
    job = Job(name, team, GenerationSpec("x", **({"steps": 4} | spec)), 0, adapters)  # type: ignore[arg-type]
    return jobs.submit(job, lane, 64, lambda _: None)


def finish(jobs: JobQueue[str], rows: tuple[Row[str], ...]) -> None:
    """What the worker does with rows that took their last step."""
    for row in rows:
        jobs.complete_decoding(row)
        if jobs.complete_row(row, None):
            jobs.settle(row.job, DRAWN)


def run_step(jobs: JobQueue[str]) -> list[str]:
    """One step; gives `name:index` of the rows that took their last."""
    batch = jobs.next_batch()
    assert batch is not None
    done = jobs.complete_step(batch.rows)
    finish(jobs, done)
    return [f"{row.job.job.id}:{row.index}" for row in done]


def names(batch: Batch[str] | None) -> list[tuple[str, int]]:
    assert batch is not None
    return [(row.job.job.id, row.step) for row in batch.rows]


def run_to_the_end(jobs: JobQueue[str], most: int = 10_000) -> None:
    for _ in range(most):
        if not jobs.jobs:
            return
        run_step(jobs)
    raise AssertionError(f"{len(jobs.jobs)} jobs are left after {most} steps")


def test_an_empty_queue_has_no_batch() -> None:
    assert queue().next_batch() is None


def test_jobs_with_different_step_counts_share_a_batch_and_leave_when_done() -> None:
    jobs = queue()
    add(jobs, "short", steps=1)
    add(jobs, "long", steps=4)
    assert run_step(jobs) == ["short:0"]
    assert [run_step(jobs) for _ in range(3)] == [[], [], ["long:0"]]


def test_a_newcomer_joins_at_the_next_step() -> None:
    jobs = queue()
    add(jobs, "first")
    run_step(jobs)
    add(jobs, "second")
    assert names(jobs.next_batch()) == [("first", 1), ("second", 0)]


def test_lanes_never_mix() -> None:
    jobs = queue()
    add(jobs, "a", lane="square")
    add(jobs, "b", lane="wide")
    batch = jobs.next_batch()
    assert batch is not None
    assert {row.job.lane for row in batch.rows} == {batch.lane}


def test_a_team_with_one_job_does_not_wait_for_a_team_with_fifty() -> None:
    jobs = queue(limit=1)
    for i in range(50):
        add(jobs, f"crowd-{i}", team="crowd")
    add(jobs, "single", team="lone")
    finished: list[str] = []
    while "single:0" not in finished:
        finished += run_step(jobs)
    assert len(finished) <= 2


def test_a_weight_of_three_gets_three_times_the_turns() -> None:
    jobs = queue(limit=1, weights={"heavy": 3.0})
    for i in range(40):
        add(jobs, f"heavy-{i}", team="heavy", steps=1)
        add(jobs, f"light-{i}", team="light", steps=1)
    served = Counter(name.split("-")[0] for _ in range(40) for name in run_step(jobs))
    assert served["heavy"] == 30


def test_two_jobs_with_one_id_are_two_jobs() -> None:
    jobs = queue()
    first, second = add(jobs, "same"), add(jobs, "same")
    first.future.cancel()
    run_to_the_end(jobs)
    assert first.future.cancelled()
    assert second.future.result(0) is DRAWN


def test_more_loras_than_slots_wait_for_a_slot() -> None:
    jobs = queue(limit=10)
    for name in "abcdef":
        add(jobs, name, team=name, loras=name)
    batch = jobs.next_batch()
    assert batch is not None
    assert len({lora for row in batch.rows for lora in row.job.adapters}) == SLOTS


def test_slots_held_by_another_lane_do_not_block_the_queue() -> None:
    jobs = queue()
    add(jobs, "a", lane="square", loras="abcd")
    run_step(jobs)
    add(jobs, "b", team="other", lane="wide", loras="z")
    add(jobs, "c", team="third", lane="tall")
    finished = [name for _ in range(4) for name in run_step(jobs)]
    assert "a:0" in finished or "c:0" in finished
    run_to_the_end(jobs)


def test_a_job_that_waits_for_slots_holds_up_no_other_though_it_is_first_in_line() -> None:
    jobs = queue(limit=2)
    add(jobs, "short", team="busy", loras="ab", steps=1)
    add(jobs, "long", team="busy", loras="cd")
    run_step(jobs)
    add(jobs, "waits", team="large", loras="wxyz")
    add(jobs, "other", team="small", lane="wide")
    assert names(jobs.next_batch()) == [("other", 0)]
    run_to_the_end(jobs)


def test_a_job_keeps_its_slots_until_its_last_picture_is_decoded() -> None:
    jobs = queue(limit=1, slots=1)
    add(jobs, "several", loras="a", steps=1, num_outputs=3)
    add(jobs, "next", team="other", loras="b", steps=1)
    order = []
    while jobs.jobs:
        order += run_step(jobs)
    assert order == ["several:0", "several:1", "several:2", "next:0"]


def test_a_job_with_more_loras_than_slots_fails_at_once_and_alone() -> None:
    jobs = queue()
    other = add(jobs, "other", loras="a")
    too_many = add(jobs, "many", team="other", loras="abcde")
    with pytest.raises(GenerationFailedError, match="4 LoRAs"):
        too_many.future.result(0)
    run_to_the_end(jobs)
    assert other.future.result(0) is DRAWN


def test_a_job_with_many_loras_does_not_wait_for_ever_beside_a_stream_of_jobs_with_few() -> None:
    jobs = queue(limit=2)
    add(jobs, "first", team="stream", loras="a")
    run_step(jobs)
    many = add(jobs, "many", team="patient", loras="wxyz")
    for i in range(60):
        # two hot LoRAs, always asked for again before they are free
        add(jobs, f"hot-{i}", team=f"stream-{i % 7}", loras="ab"[i % 2])
        run_step(jobs)
        if many.future.done():
            return
    raise AssertionError("it never started")


def test_what_waits_behind_a_reservation_still_uses_the_slots_that_are_left() -> None:
    jobs = queue(limit=4, slots=4)
    add(jobs, "holder", loras="abc", steps=4)
    run_step(jobs)
    add(jobs, "two", team="two", loras="xy")
    add(jobs, "plain", team="plain")
    batch = jobs.next_batch()
    assert {name for name, _ in names(batch)} == {"holder", "plain"}


@pytest.mark.parametrize("teams", [17, 40])
def test_every_team_with_a_lora_of_its_own_is_drawn(teams: int) -> None:
    jobs = queue(limit=8, slots=16)
    queued = [add(jobs, f"{i}", team=f"team-{i}", loras=chr(0x4E00 + i), num_outputs=2 + i % 3) for i in range(teams)]
    run_to_the_end(jobs)
    assert all(each.future.result(0) is DRAWN for each in queued)


def test_a_cancelled_job_leaves_its_slots_and_its_turn_at_once() -> None:
    jobs = queue(slots=1)
    first, second = add(jobs, "first", loras="a"), add(jobs, "second", team="other", loras="b")
    batch = jobs.next_batch()
    first.future.cancel()
    assert batch is not None
    assert jobs.complete_step(batch.rows) == ()
    assert {row.job for row in (jobs.next_batch() or batch).rows} == {second}


def test_a_listener_that_raises_fails_its_own_job() -> None:
    jobs = queue()
    good = add(jobs, "good")
    spec = GenerationSpec("x", steps=1)

    def raises(_: Progress) -> None:
        raise RuntimeError("a bug of the caller")

    bad = jobs.submit(Job("bad", "team", spec, 0), "square", 64, raises)
    jobs.tell(bad, Progress("denoise", 1, 1))
    with pytest.raises(GenerationFailedError):
        bad.future.result(0)
    run_to_the_end(jobs)
    assert good.future.result(0) is DRAWN


def test_a_known_error_reaches_the_caller_and_an_unknown_one_does_not() -> None:
    jobs = queue()
    known, unknown = add(jobs, "known"), add(jobs, "unknown")
    jobs.fail(known, AdapterError("this LoRA is damaged"))
    jobs.fail(unknown, RuntimeError("secrets of the kernel"))
    assert isinstance(known.future.exception(0), AdapterError)
    assert "secrets" not in str(unknown.future.exception(0))


def test_a_closed_queue_cancels_what_is_left_and_takes_nothing_more() -> None:
    jobs = queue()
    left = add(jobs, "left")
    jobs.close()
    late = add(jobs, "late")
    assert left.future.cancelled()
    assert late.future.cancelled()
    assert not jobs.wait()


def test_the_worker_is_woken_by_a_new_job() -> None:
    jobs, woken = queue(), threading.Event()
    thread = threading.Thread(target=lambda: woken.set() if jobs.wait() else None)
    thread.start()
    add(jobs, "first")
    assert woken.wait(10)
    thread.join()


def test_positions_count_the_jobs_ahead_and_are_told_when_they_change() -> None:
    jobs = queue(limit=1)
    first, second, third = (add(jobs, name) for name in "abc")
    assert [(each, each.position) for each in jobs.moved()] == [(first, 0), (second, 1), (third, 2)]
    run_step(jobs)
    assert [(each, each.position) for each in jobs.moved()] == [(second, 0), (third, 1)]
    assert jobs.moved() == []
    assert jobs.counts().waiting_jobs == 2
    assert jobs.counts().denoising_rows == 1
    assert jobs.remaining_steps() == {"square": 11}


@dataclass
class Seen:
    added: list[QueuedJob[str]] = field(default_factory=list)
    ended: Counter[QueuedJob[str]] = field(default_factory=Counter)
    cancelled: set[QueuedJob[str]] = field(default_factory=set)
    failed: set[QueuedJob[str]] = field(default_factory=set)
    began: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    in_slot: dict[int, str] = field(default_factory=dict)


class QueueMachine(RuleBasedStateMachine):
    """Random arrivals with up to eight LoRAs for four slots, steps, cancels and failures, decoding late or at once."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs = queue()
        self.seen = Seen()
        self.undecoded: list[Row[str]] = []

    @rule(
        team=st.sampled_from("abc"),
        lane=st.sampled_from(["square", "wide", "tall"]),
        outputs=st.integers(1, 4),
        steps=st.integers(1, 4),
        loras=st.text("stuvwxyz", max_size=8),
    )
    def arrive(self, team: str, lane: str, outputs: int, steps: int, loras: str) -> None:
        queued = add(self.jobs, f"{len(self.seen.added)}", team, lane, loras, num_outputs=outputs, steps=steps)
        queued.future.add_done_callback(lambda _: self.seen.ended.update([queued]))
        self.seen.added.append(queued)
        if len(set(loras)) > SLOTS:
            assert queued.future.done()
            self.seen.failed.add(queued)

    @precondition(lambda self: self.jobs.jobs)
    @rule(decode=st.booleans())
    def step(self, *, decode: bool = True) -> None:
        batch = self.jobs.next_batch()
        if batch is None:
            # only what is still to be decoded can hold the slots that the others wait for
            assert self.undecoded
            self.decode()
            return
        assert 1 <= len(batch.rows) <= BATCH_LIMIT
        assert {row.job.lane for row in batch.rows} == {batch.lane}
        assert not any(row.job.is_over for row in batch.rows)
        self.check_slots(batch)
        for queued in batch.newcomers:
            self.seen.began[queued.job.team_id, queued.lane].append(int(queued.job.id))
        self.undecoded += self.jobs.complete_step(batch.rows)
        if decode:
            self.decode()

    def check_slots(self, batch: Batch[str]) -> None:
        for queued in batch.newcomers:
            assert queued.slots is not None
            self.seen.in_slot |= dict(zip(queued.slots, queued.adapters, strict=True))
        # a row never steps with another LoRA in its slot
        for row in batch.rows:
            assert row.job.slots is not None
            assert [self.seen.in_slot[slot] for slot in row.job.slots] == list(row.job.adapters)

    def decode(self) -> None:
        done, self.undecoded = self.undecoded, []
        finish(self.jobs, tuple(row for row in done if not row.job.is_over))

    @precondition(lambda self: self.seen.added)
    @rule(data=st.data(), fails=st.booleans())
    def cancel_or_fail(self, data: st.DataObject, *, fails: bool) -> None:
        queued = data.draw(st.sampled_from(self.seen.added))
        if queued.future.done():
            return
        (self.seen.failed if fails else self.seen.cancelled).add(queued)
        if fails:
            self.jobs.fail(queued, RuntimeError("as a kernel fails"))
        else:
            queued.future.cancel()

    @invariant()
    def a_job_ends_at_most_once(self) -> None:
        assert all(count == 1 for count in self.seen.ended.values())
        assert all(not queued.future.done() for queued in self.jobs.jobs)

    @invariant()
    def a_teams_jobs_of_one_size_begin_in_the_order_they_came(self) -> None:
        assert all(began == sorted(began) for began in self.seen.began.values())

    def teardown(self) -> None:
        for _ in range(10_000):
            if not self.jobs.jobs:
                break
            self.step(decode=True)
        assert self.seen.ended == Counter(self.seen.added)
        for queued in self.seen.added:
            assert queued.future.cancelled() == (queued in self.seen.cancelled)
            if queued not in self.seen.cancelled:
                assert (queued.future.exception(0) is not None) == (queued in self.seen.failed)
        assert not self.jobs.held_adapters()


TestRandomTraffic = QueueMachine.TestCase
TestRandomTraffic.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["square", "wide"])), min_size=1, max_size=30))
def test_waiting_is_bounded_by_what_came_before(arrivals: list[tuple[str, str]]) -> None:
    jobs = queue(limit=1)
    for i, (team, lane) in enumerate(arrivals):
        add(jobs, str(i), team, lane, steps=1)
    order = [name.partition(":")[0] for _ in arrivals for name in run_step(jobs)]
    for i, (team, _) in enumerate(arrivals):
        ahead_of_own_team = sum(other == team for other, _ in arrivals[:i])
        assert order.index(str(i)) <= 2 * ahead_of_own_team + 1
