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

#: The API lets a request name two LoRAs (`lora_weights`, `extra_lora`); static batches have room for so many in each
#: row.
MAX_ADAPTERS_PER_ROW: Final = 2
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

    With `rows_used` 0 the layers are plain linears. The routes of the last two different batches are remembered, and
    `remembered` holds their numbers: a batch that comes again gets the same number, and the layers find under it what
    they gathered for it (`KeptPerBatch`). `forget` ends that as soon as any slot's content changes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._numbers = count(1)
        self._routes: OrderedDict[tuple[Uses, bool], Route] = OrderedDict()
        self.remembered: frozenset[int] = frozenset()
        self.rows_used = 0
        self.is_static = False
        nothing = torch.zeros(0, 1, dtype=torch.long, device=device)
        self._follow(Route(0, None, nothing, nothing.float(), frozenset(), None))

    def forget(self) -> None:
        """Forget all routes: a slot holds something else now, and what layers gathered from it is void.

        The next batch gets a new number, whatever it uses; the layers drop the old factors when they gather for it.
        """
        self._routes.clear()

    @contextmanager
    def using(self, uses: Sequence[Sequence[SlotUse]], *, static: bool = False) -> Iterator[None]:
        """Route a batch for the duration of the block: one sequence of slot uses a row.

        `static` gives every batch of a size tensors of the same shape, rows without LoRA included, so that a model
        under `torch.compile` meets no new shape.
        """
        # a LoRA at scale 0 changes nothing: its row is left out, and draws bit for bit what it draws without
        self._route(tuple(tuple(use for use in row if use.slot and use.scale) for row in uses), static=static)
        try:
            yield
        finally:
            self.rows_used = 0

    def _route(self, uses: Uses, *, static: bool) -> None:
        self.is_static = static
        self.rows_used = len(uses) if static else sum(bool(row) for row in uses)
        if not self.rows_used:
            return
        # taken out and put in again: the order of `_routes` is that of their last use
        known = self._routes.pop((uses, static), None)
        self._routes[uses, static] = route = known or self._new_route(uses, static=static)
        while len(self._routes) > _REMEMBERED:
            self._routes.popitem(last=False)
        self.remembered = frozenset(kept.number for kept in self._routes.values())
        self._follow(route)

    def _new_route(self, uses: Uses, *, static: bool) -> Route:
        chosen = range(len(uses)) if static else [row for row, row_uses in enumerate(uses) if row_uses]
        width = MAX_ADAPTERS_PER_ROW if static else max(len(uses[row]) for row in chosen)
        padded = [[*uses[row], *[SlotUse(0, 0.0)] * (width - len(uses[row]))] for row in chosen]
        different = {use for row in padded for use in row}
        return Route(
            number=next(self._numbers),
            rows=None if len(chosen) == len(uses) else torch.tensor(list(chosen), device=self._device),
            slots=torch.tensor([[use.slot for use in row] for row in padded], device=self._device),
            scales=torch.tensor([[use.scale for use in row] for row in padded], device=self._device),
            slots_used=frozenset(use.slot for use in different),
            shared=different.pop() if not static and width == 1 and len(different) == 1 else None,
        )

    def _follow(self, route: Route) -> None:
        # attributes of this one object, not a route that changes: a compiled model takes the tensors for its inputs
        self.route_number, self.rows, self.slots, self.scales = route.number, route.rows, route.slots, route.scales
        self.slots_used, self.shared = route.slots_used, route.shared


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
