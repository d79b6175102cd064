"""Which LoRA sits in which slot of the engine's layers, and which jobs need it there.

A slot holds the factors of one LoRA (`engine/slot_linear.py`); slot 0 is "no LoRA" and never given away. A job leases
one slot for each of its LoRAs, all of them or none, from before its prompt is encoded until its last picture is
decoded. Jobs with the same LoRA share its slot. A LoRA that nobody leases stays where it is until its place is needed:
switching back to it costs nothing.

No tensors here. The engine loads what it is told into the slot that it is told; a number means the same LoRA in every
precision that is loaded.
"""

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Sequence


class SlotLeases:
    """The slots 1 ... `slot_count`, the LoRAs in them by content hash, and the jobs that hold them."""

    def __init__(self, slot_count: int) -> None:
        self.slot_count = slot_count
        self._free = list(range(slot_count, 0, -1))
        # least recently leased first
        self._slot_of: OrderedDict[str, int] = OrderedDict()
        self._holders: dict[str, set[Hashable]] = {}

    @property
    def held(self) -> Collection[str]:
        """The LoRAs that jobs need where they are."""
        return self._holders.keys()

    @property
    def resident(self) -> tuple[str, ...]:
        """The LoRAs that have a slot, held or not, the least recently leased first."""
        return tuple(self._slot_of)

    def has_room_for(self, adapters: Collection[str]) -> bool:
        """Whether so many LoRAs could be in slots at once."""
        return len(set(adapters)) <= self.slot_count

    def fits(self, adapters: Iterable[str]) -> bool:
        """Whether these LoRAs have room beside the held ones."""
        return self.has_room_for({*self._holders, *adapters})

    def grant(self, holder: Hashable, adapters: Sequence[str]) -> tuple[int, ...]:
        """Lease a slot for each of the LoRAs, all of which fit; gives the slots in the same order."""
        # every LoRA is held before a place is looked for, so that none of them takes another's
        for adapter in adapters:
            self._holders.setdefault(adapter, set()).add(holder)
        return tuple(self._place(adapter) for adapter in adapters)

    def stage(self, adapter: str, wanted: Collection[str]) -> int | None:
        """A slot for a LoRA that a job is about to lease, so that it can be loaded before; None where it has one.

        Also None where a slot could only be had from a LoRA that is held, or `wanted` by others in line. Nobody holds
        the slot: until the job comes, somebody in greater need may still take it.
        """
        if adapter in self._slot_of:
            return None
        idle = (each for each in self._slot_of if each not in self._holders and each not in wanted)
        if self._free:
            slot = self._free.pop()
        elif (unwanted := next(idle, None)) is not None:
            slot = self._slot_of.pop(unwanted)
        else:
            return None
        self._slot_of[adapter] = slot
        return slot

    def release(self, holder: Hashable, adapters: Iterable[str]) -> None:
        """End a lease. The LoRAs stay in their slots until somebody needs the place."""
        for adapter in set(adapters):
            holders = self._holders[adapter]
            holders.discard(holder)
            if not holders:
                del self._holders[adapter]

    def _place(self, adapter: str) -> int:
        slot = self._slot_of.get(adapter)
        if slot is None:
            slot = self._free.pop() if self._free else self._take_unheld()
            self._slot_of[adapter] = slot
        self._slot_of.move_to_end(adapter)
        return slot

    def _take_unheld(self) -> int:
        unheld = next(adapter for adapter in self._slot_of if adapter not in self._holders)
        return self._slot_of.pop(unheld)
