"""Which LoRA slots the rows of a batch use: one `SlotRouting` a model, which all of its layers look up.

A batch's slots become tensors once, not once a layer, and stay for as long as the same batch comes again: a picture's
steps follow one another with the same slots.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor

#: How many different batches are remembered. Batches of two picture sizes take turns, so one would not do; layers keep
#: copies of factors for each, so batches that do not come again cost memory for nothing.
_REMEMBERED: Final = 2


@dataclass(frozen=True, slots=True)
class SlotUse:
    """A slot that a row uses, and the scale of the LoRA in it. Slot 0 is no LoRA."""

    slot: int
    scale: float


Uses = tuple[tuple[SlotUse, ...], ...]


@dataclass(frozen=True, slots=True)
class Route:
    """A batch's slots as tensors on the model's device.

    `slots` (int64) and `scales` (float32) are (rows, adapters a row); a row that uses fewer has slot 0 at scale 0
    there. `rows` (int64) lists the batch rows that use any LoRA, or is None where all do. `shared` is the one slot that
    all of these rows use at one scale and beside nothing else; None otherwise. No two routes have the same `number`.
    """

    number: int
    rows: Tensor | None
    slots: Tensor
    scales: Tensor
    slots_used: frozenset[int]
    shared: SlotUse | None


KeptT = TypeVar("KeptT")


class SlotRouting:
    """The route of the current batch, set for the duration of `using`.

    While `is_active` is false, the layers are plain linears. The routes of the last two different batches are
    remembered, and `remembered` holds their numbers: a batch that comes again gets the same number, and the layers find
    under it what they gathered for it (`KeptPerBatch`). `forget` ends that as soon as any slot's content changes.

    `static`: rows without LoRA use slot 0 beside others, so that all batches of a size have the same shapes, as a
    compiled network needs, and no row is copied out and back. Otherwise they are left out, which saves arithmetic.
    """

    def __init__(self, device: torch.device, *, static: bool = False) -> None:
        self._device = device
        self._static = static
        self._numbers = count(1)
        self._routes: OrderedDict[Uses, Route] = OrderedDict()
        self._not_low_rank: set[int] = set()
        self.remembered: frozenset[int] = frozenset()
        self.is_active = False
        nothing = torch.zeros(0, 1, dtype=torch.long, device=device)
        self._follow(Route(0, None, nothing, nothing.float(), frozenset(), None))

    def forget(self) -> None:
        """Forget all routes: a slot holds something else now, and what layers gathered from it is void.

        The next batch gets a new number, whatever it uses; the layers drop the old factors when they gather for it.
        """
        self._routes.clear()

    def describe_slot(self, slot: int, *, is_low_rank: bool) -> None:
        """Note whether low-rank factors are all that a slot holds in the network: no DoRA's gains, no LoKr."""
        (self._not_low_rank.discard if is_low_rank else self._not_low_rank.add)(slot)

    @contextmanager
    def using(self, uses: Sequence[Sequence[SlotUse]]) -> Iterator[None]:
        """Route a batch for the duration of the block: one sequence of slot uses a row."""
        # a LoRA at scale 0 changes nothing: its row is left out, and draws bit for bit what it draws without
        self._route(tuple(tuple(use for use in row if use.slot and use.scale) for row in uses))
        try:
            yield
        finally:
            self.is_active = False

    def _route(self, uses: Uses) -> None:
        self.is_active = any(uses)
        if not self.is_active:
            return
        # taken out and put in again: the order of `_routes` is that of their last use
        known = self._routes.pop(uses, None)
        self._routes[uses] = route = known or self._new_route(uses)
        while len(self._routes) > _REMEMBERED:
            self._routes.popitem(last=False)
        self.remembered = frozenset(kept.number for kept in self._routes.values())
        self._follow(route)

    def _new_route(self, uses: Uses) -> Route:
        chosen = range(len(uses)) if self._static else [row for row, row_uses in enumerate(uses) if row_uses]
        width = max(len(uses[row]) for row in chosen)
        padded = [[*uses[row], *[SlotUse(0, 0.0)] * (width - len(uses[row]))] for row in chosen]
        different = {use for row in padded for use in row}
        return Route(
            number=next(self._numbers),
            rows=None if len(chosen) == len(uses) else torch.tensor(list(chosen), device=self._device),
            slots=torch.tensor([[use.slot for use in row] for row in padded], device=self._device),
            scales=torch.tensor([[use.scale for use in row] for row in padded], device=self._device),
            slots_used=frozenset(use.slot for use in different),
            shared=different.pop() if width == 1 and len(different) == 1 else None,
        )

    def _follow(self, route: Route) -> None:
        # attributes of this one object, not a route that changes: a compiled network takes the tensors for its inputs
        self.route_number, self.rows, self.slots, self.scales = route.number, route.rows, route.slots, route.scales
        self.slots_used, self.shared = route.slots_used, route.shared
        self.is_low_rank = self._not_low_rank.isdisjoint(route.slots_used)


class KeptPerBatch(Generic[KeptT]):
    """What a layer has made for the batches that its routing remembers, by their routes' numbers.

    Older entries are dropped when something new is made, so a layer holds at most as much as two batches need, and
    until then whatever it held last.
    """

    def __init__(self) -> None:
        self._kept: dict[int, KeptT] = {}

    def get(self, routing: SlotRouting, make: Callable[[], KeptT]) -> KeptT:
        """What was made for the current batch, or is made now."""
        if routing.route_number not in self._kept:
            self._kept = {number: kept for number, kept in self._kept.items() if number in routing.remembered}
            self._kept[routing.route_number] = make()
        return self._kept[routing.route_number]
