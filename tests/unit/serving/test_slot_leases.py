from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schnell.serving.slot_leases import SlotLeases

SLOTS = 3
LORAS = "abcdef"


def test_jobs_with_the_same_lora_share_its_slot() -> None:
    leases = SlotLeases(SLOTS)
    assert leases.grant("first", ("a",)) == leases.grant("second", ("a",))


def test_a_lora_that_nobody_needs_stays_in_its_slot_until_its_place_is_needed() -> None:
    leases = SlotLeases(2)
    [slot] = leases.grant("first", ("a",))
    leases.release("first", ("a",))
    leases.grant("second", ("b",))
    assert leases.grant("third", ("a",)) == (slot,)


def test_a_lora_in_line_gets_a_free_slot_and_its_job_leases_that_one() -> None:
    leases = SlotLeases(2)
    leases.grant("first", ("a",))
    slot = leases.stage("b", {"b"})
    assert slot is not None
    assert leases.stage("b", {"b"}) is None
    assert leases.grant("second", ("b",)) == (slot,)


def test_a_lora_in_line_takes_no_slot_that_is_held_or_that_others_in_line_want() -> None:
    leases = SlotLeases(3)
    for holder, adapter in enumerate("abc"):
        leases.grant(holder, (adapter,))
    assert leases.stage("d", {"d"}) is None
    leases.release(0, ("a",))
    assert leases.stage("d", {"a", "d"}) is None
    [held] = leases.grant("again", ("b",))
    leases.release(1, ("b",))
    # "a" is the only one that nobody needs
    staged = leases.stage("d", {"d"})
    assert staged is not None
    assert staged != held
    assert set(leases.resident) == {"b", "c", "d"}


def test_the_least_recently_leased_lora_goes_first() -> None:
    leases = SlotLeases(2)
    for holder, adapter in enumerate("aba"):
        leases.grant(holder, (adapter,))
        leases.release(holder, (adapter,))
    leases.grant("newcomer", ("c",))
    assert leases.resident == ("a", "c")


def test_a_lora_takes_no_slot_from_another_of_its_own_job() -> None:
    leases = SlotLeases(2)
    leases.grant("first", ("a",))
    leases.release("first", ("a",))
    leases.grant("second", ("b",))
    leases.release("second", ("b",))
    assert len(set(leases.grant("third", ("c", "a")))) == 2


class LeaseMachine(RuleBasedStateMachine):
    """Random leases that fit, and their ends."""

    def __init__(self) -> None:
        super().__init__()
        self.leases = SlotLeases(SLOTS)
        self.open: dict[int, dict[str, int]] = {}
        self.count = 0

    @rule(adapters=st.lists(st.sampled_from(LORAS), max_size=SLOTS, unique=True))
    def grant(self, adapters: list[str]) -> None:
        needed = {*adapters, *(name for lease in self.open.values() for name in lease)}
        assert self.leases.fits(adapters) == (len(needed) <= SLOTS)
        if not self.leases.fits(adapters):
            return
        self.count += 1
        slots = self.leases.grant(self.count, adapters)
        self.open[self.count] = dict(zip(adapters, slots, strict=True))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(sorted(self.open)))
        self.leases.release(holder, self.open.pop(holder))

    @invariant()
    def a_held_lora_has_one_slot_and_a_slot_one_lora(self) -> None:
        held: dict[str, set[int]] = {}
        for lease in self.open.values():
            for adapter, slot in lease.items():
                held.setdefault(adapter, set()).add(slot)
        assert all(len(slots) == 1 for slots in held.values())
        used = [slot for slots in held.values() for slot in slots]
        assert len(used) == len(set(used))
        assert set(used) <= set(range(1, SLOTS + 1))

    @invariant()
    def what_is_held_is_what_open_leases_need(self) -> None:
        assert set(self.leases.held) == {name for lease in self.open.values() for name in lease}


TestRandomLeases = LeaseMachine.TestCase
TestRandomLeases.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
