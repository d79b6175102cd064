"""One queue for several devices: what goes where, what waits for whom, and what a lost device leaves behind."""

import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from schnell.errors import GenerationFailedError, ModelBusyError
from schnell.serving.device_share import DeviceLimits
from schnell.serving.jobs import QueuedJob, Row
from schnell.serving.queue import JobQueue
from schnell.spec import AdapterUse, GenerationSpec, Job, JobOutcome, Progress

SLOTS = 4
DRAWN = JobOutcome(())


def queue(devices: int = 2, limit: int = 1, slots: Sequence[int] = ()) -> JobQueue[str]:
    each: list[DeviceLimits[str]] = [DeviceLimits(lambda _: limit, count) for count in slots or [SLOTS] * devices]
    return JobQueue(each[0].batch_limit, each[0].adapter_slots, others=each[1:])


def add(
    jobs: JobQueue[str], name: str, loras: str = "", team: str = "", only_on: int | None = None, **spec: int
) -> QueuedJob[str]:
    adapters = tuple(AdapterUse(each, each, Path(each), 1.0) for each in dict.fromkeys(loras))
    job = Job(name, team or name, GenerationSpec("x", **({"steps": 4} | spec)), 0, adapters)  # type: ignore[arg-type]
    return jobs.submit(job, "square", 64, lambda _: None, only_on)


def step(jobs: JobQueue[str], device: int) -> list[str]:
    """One step of a device; the names of the jobs in it."""
    batch = jobs.next_batch(device)
    if batch is None:
        return []
    finish(jobs, jobs.complete_step(batch.rows))
    return [row.job.job.id for row in batch.rows]


def finish(jobs: JobQueue[str], rows: Sequence[Row[str]]) -> None:
    for row in rows:
        jobs.complete_decoding(row)
        if jobs.complete_row(row, None):
            jobs.settle(row.job, DRAWN)


def test_two_devices_draw_two_jobs_at_once_and_each_stays_where_it_began() -> None:
    jobs = queue()
    add(jobs, "a")
    add(jobs, "b")
    assert [step(jobs, device) for device in (0, 1, 0, 1)] == [["a"], ["b"], ["a"], ["b"]]


def test_a_free_device_is_woken_by_a_job_and_a_busy_one_is_not_asked() -> None:
    jobs, woken = queue(), threading.Event()
    thread = threading.Thread(target=lambda: woken.set() if jobs.wait(1) else None)
    add(jobs, "first")
    step(jobs, 0)
    thread.start()
    assert not woken.wait(0.1)  # the only job is drawn by the other device
    add(jobs, "second")
    assert woken.wait(10)
    thread.join()


def test_a_lora_is_drawn_where_it_is_in_a_slot_already() -> None:
    jobs = queue()
    add(jobs, "teaches", "x")
    while step(jobs, 0):
        pass
    add(jobs, "again", "x")
    assert step(jobs, 1) == []
    assert step(jobs, 0) == ["again"]


def test_it_does_not_wait_for_that_device_longer_than_a_drawing_takes() -> None:
    jobs = queue()
    add(jobs, "teaches", "x")
    while step(jobs, 0):
        pass
    for name in "abc":
        add(jobs, name, "x")
    # the first stays with its LoRA, the second may have one drawing before it, the third has two
    assert step(jobs, 1) == ["c"]
    assert step(jobs, 0) == ["a"]


def test_a_device_that_is_busy_with_longer_work_loses_the_job() -> None:
    jobs = queue()
    add(jobs, "teaches", "x")
    while step(jobs, 0):
        pass
    add(jobs, "long", num_outputs=4)
    assert step(jobs, 0) == ["long"]
    add(jobs, "again", "x")
    assert step(jobs, 1) == ["again"]


def test_each_device_has_slots_of_its_own() -> None:
    jobs = queue(limit=8)
    for name in "abcdefgh":
        add(jobs, name, name)
    assert len(step(jobs, 0)) == SLOTS
    assert len(step(jobs, 1)) == SLOTS
    assert jobs.held_adapters(0).isdisjoint(jobs.held_adapters(1))


def test_a_job_for_one_device_alone_is_drawn_there() -> None:
    jobs = queue()
    add(jobs, "here", only_on=1)
    assert step(jobs, 0) == []
    assert step(jobs, 1) == ["here"]


def test_a_job_with_more_loras_than_one_device_has_slots_is_drawn_by_the_other() -> None:
    jobs = queue(slots=(2, 4))
    many, too_many = add(jobs, "many", "abcd"), add(jobs, "too many", "abcde")
    assert isinstance(too_many.future.exception(0), GenerationFailedError)
    assert step(jobs, 0) == []
    assert step(jobs, 1) == ["many"]
    assert jobs.adapter_slots == 4
    assert not many.future.done()


def test_only_one_device_drains_its_slots_for_a_job_that_waits() -> None:
    jobs = queue(limit=8)
    for name in "ab":
        add(jobs, name, name)
    step(jobs, 0)
    for name in "cd":
        add(jobs, name, name)
    step(jobs, 1)
    add(jobs, "many", "wxyz")
    assert step(jobs, 0) == ["a", "b"]
    add(jobs, "also a", "a")
    # device 0 drains its slots for `many`, so nobody joins there; the other is left alone
    assert "also a" not in step(jobs, 0)
    assert "also a" in step(jobs, 1)


def test_a_lost_device_gives_its_jobs_back_in_their_turn_but_not_those_of_the_failed_call() -> None:
    jobs = queue(limit=1)
    first, second = add(jobs, "first", "x", num_outputs=2), add(jobs, "second")
    third = add(jobs, "third")
    step(jobs, 0), step(jobs, 0)
    batch = jobs.next_batch(1)
    assert batch is not None
    jobs.lose(1, [second])
    with pytest.raises(ModelBusyError, match="device"):
        second.future.result(0)
    assert jobs.complete_step(batch.rows) == ()
    jobs.lose(0, [])
    for queued in (first, third):
        with pytest.raises(ModelBusyError, match="no device is left"):
            queued.future.result(0)
    late = add(jobs, "late")
    assert isinstance(late.future.exception(0), ModelBusyError)
    assert not jobs.wait(0)


def test_what_began_on_a_lost_device_begins_again_from_its_first_step_on_another() -> None:
    jobs = queue()
    moved = add(jobs, "moved", "x", steps=2, num_outputs=2)
    batch = jobs.next_batch(0)
    assert batch is not None
    old_rows = [*batch.rows]
    jobs.complete_step(batch.rows)
    jobs.lose(0, [])
    assert moved.position is None
    assert [row.step for row in moved.rows] == [0, 0]
    order = [step(jobs, 1) for _ in range(4)]
    assert order == [["moved"]] * 4
    assert moved.future.result(0) is DRAWN
    # a thread that was still busy with the old attempt changes nothing
    assert jobs.complete_row(old_rows[0], None) is False


class DeviceMachine(RuleBasedStateMachine):
    """Random traffic over two or three devices, which step and decode in any order, and of which all but one may go."""

    @initialize(devices=st.integers(2, 3))
    def begin(self, devices: int) -> None:
        self.jobs = queue(devices, limit=3)
        self.alive = list(range(devices))
        self.added: list[QueuedJob[str]] = []
        self.ended: Counter[QueuedJob[str]] = Counter()
        self.cancelled: set[QueuedJob[str]] = set()
        self.failed: set[QueuedJob[str]] = set()
        self.undecoded: defaultdict[int, list[Row[str]]] = defaultdict(list)
        self.in_slot: defaultdict[int, dict[int, str]] = defaultdict(dict)

    @rule(
        team=st.sampled_from("abc"),
        outputs=st.integers(1, 3),
        steps=st.integers(1, 3),
        loras=st.text("tuvwxyz", max_size=5),
    )
    def arrive(self, team: str, outputs: int, steps: int, loras: str) -> None:
        queued = add(self.jobs, f"{len(self.added)}", loras, team, num_outputs=outputs, steps=steps)
        queued.future.add_done_callback(lambda _: self.ended.update([queued]))
        self.added.append(queued)
        if len(set(loras)) > SLOTS:
            self.failed.add(queued)

    @rule(data=st.data(), decode=st.booleans())
    def step(self, data: st.DataObject, *, decode: bool) -> None:
        self.step_on(data.draw(st.sampled_from(self.alive)), decode=decode)

    def step_on(self, device: int, *, decode: bool) -> bool:
        batch = self.jobs.next_batch(device)
        if batch is not None:
            assert {row.job.device for row in batch.rows} == {device}
            for queued in batch.newcomers:
                assert queued.slots is not None
                self.in_slot[device] |= dict(zip(queued.slots, queued.adapters, strict=True))
            for row in batch.rows:
                assert row.job.slots is not None
                assert [self.in_slot[device][slot] for slot in row.job.slots] == list(row.job.adapters)
            self.undecoded[device] += self.jobs.complete_step(batch.rows)
        had_rows = bool(self.undecoded[device])
        if decode or batch is None:
            done, self.undecoded[device] = self.undecoded[device], []
            finish(self.jobs, [row for row in done if not row.job.is_over])
        return batch is not None or had_rows

    @precondition(lambda self: self.added)
    @rule(data=st.data(), fails=st.booleans())
    def cancel_or_fail(self, data: st.DataObject, *, fails: bool) -> None:
        queued = data.draw(st.sampled_from(self.added))
        if not queued.future.done():
            (self.failed if fails else self.cancelled).add(queued)
            self.jobs.fail(queued, RuntimeError("as a kernel fails")) if fails else queued.future.cancel()

    @precondition(lambda self: len(self.alive) > 1 and len(self.added) > 3)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        device = data.draw(st.sampled_from(self.alive))
        started = self.jobs.jobs_on(device)
        suspects = [data.draw(st.sampled_from(started))] if started else []
        self.failed.update(suspects)
        self.alive.remove(device)
        self.undecoded.pop(device, None)
        self.jobs.lose(device, suspects)

    @invariant()
    def no_device_has_more_loras_than_slots(self) -> None:
        for device in getattr(self, "alive", ()):
            assert len(self.jobs.held_adapters(device)) <= SLOTS

    @invariant()
    def a_job_ends_at_most_once(self) -> None:
        assert all(count == 1 for count in getattr(self, "ended", {}).values())

    def teardown(self) -> None:
        if not hasattr(self, "jobs"):
            return
        for _ in range(3_000):
            if not self.jobs.jobs:
                break
            went_on = [self.step_on(device, decode=True) for device in self.alive]
            assert any(went_on), "jobs wait, and no device goes on"
        assert self.ended == Counter(self.added)
        for queued in self.added:
            assert queued.future.cancelled() == (queued in self.cancelled)
            if queued not in self.cancelled:
                assert (queued.future.exception(0) is not None) == (queued in self.failed)
        assert not any(self.jobs.held_adapters(device) for device in self.alive)


TestRandomTraffic = DeviceMachine.TestCase
TestRandomTraffic.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_place_in_line_is_never_told_after_a_step() -> None:
    jobs, told = queue(), list[str]()
    job = Job("a", "team", GenerationSpec("x", steps=2), 0)
    queued = jobs.submit(job, "square", 64, lambda progress: told.append(progress.stage))
    [moved] = jobs.moved()
    jobs.next_batch(1)
    jobs.tell(queued, Progress("denoise", 1, 2))
    jobs.tell(moved, Progress("queued", 0, 2, position=0))
    assert told == ["denoise"]
