"""Which slots the rows of a batch use: what all layers of a model look up."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor

MAX_ADAPTERS_PER_ROW: Final = 2
#: Lanes take turns, and requests alternate: so many batches are remembered, the last ones.
_REMEMBERED: Final = 2


@dataclass(frozen=True, slots=True)
class SlotUse:
    """A slot that a row uses, and how strongly. Slot 0 is no LoRA."""

    slot: int
    scale: float


Uses = tuple[tuple[SlotUse, ...], ...]


@dataclass(frozen=True, slots=True)
class Route:
    """A batch's slots as tensors.

    `slots` and `scales` are (rows, adapters a row); rows that use fewer have slot 0 there. `rows` lists the batch rows
    that use any LoRA, or is None where all do. `shared` is the one slot that all of these rows use, and nothing else.
    """

    batch: int
    rows: Tensor | None
    slots: Tensor
    scales: Tensor
    slots_used: frozenset[int]
    shared: SlotUse | None


KeptT = TypeVar("KeptT")


class SlotRouting:
    """The route of the batch at hand: shared by all layers of a model.

    With `rows_used` 0 the layers are plain linears. `batch` is another number whenever rows use other slots than
    before, or a slot holds another LoRA; `batches` are those remembered. Layers keep what they gathered for them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._numbers = count(1)
        self._routes: OrderedDict[tuple[Uses, bool], Route] = OrderedDict()
        self.batches: frozenset[int] = frozenset()
        self.rows_used = 0
        self.is_static = False
        nothing = torch.zeros(0, 1, dtype=torch.long, device=device)
        self._follow(Route(0, None, nothing, nothing.float(), frozenset(), None))

    def forget(self) -> None:
        """A slot holds something else now: what layers gathered for earlier batches is void."""
        self._routes.clear()

    @contextmanager
    def using(self, uses: Sequence[Sequence[SlotUse]], *, static: bool = False) -> Iterator[None]:
        """Route a batch for the duration of the block: one sequence of slot uses a row.

        `static` gives every batch of a size tensors of the same shape, rows without LoRA included, so that a compiled
        model meets no new shape.
        """
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
        known = self._routes.pop((uses, static), None)
        self._routes[uses, static] = route = known or self._new_route(uses, static=static)
        while len(self._routes) > _REMEMBERED:
            self._routes.popitem(last=False)
        self.batches = frozenset(kept.batch for kept in self._routes.values())
        self._follow(route)

    def _new_route(self, uses: Uses, *, static: bool) -> Route:
        chosen = range(len(uses)) if static else [row for row, row_uses in enumerate(uses) if row_uses]
        width = MAX_ADAPTERS_PER_ROW if static else max(len(uses[row]) for row in chosen)
        padded = [[*uses[row], *[SlotUse(0, 0.0)] * (width - len(uses[row]))] for row in chosen]
        different = {use for row in padded for use in row}
        return Route(
            batch=next(self._numbers),
            rows=None if len(chosen) == len(uses) else torch.tensor(list(chosen), device=self._device),
            slots=torch.tensor([[use.slot for use in row] for row in padded], device=self._device),
            scales=torch.tensor([[use.scale for use in row] for row in padded], device=self._device),
            slots_used=frozenset(use.slot for use in different),
            shared=different.pop() if not static and width == 1 and len(different) == 1 else None,
        )

    def _follow(self, route: Route) -> None:
        # attributes of this one object: a compiled model takes them for its inputs
        self.batch, self.rows, self.slots, self.scales = route.batch, route.rows, route.slots, route.scales
        self.slots_used, self.shared = route.slots_used, route.shared


class KeptPerBatch(Generic[KeptT]):
    """What a layer has made for the batches that its routing remembers, and nothing older."""

    def __init__(self) -> None:
        self._kept: dict[int, KeptT] = {}

    def get(self, routing: SlotRouting, make: Callable[[], KeptT]) -> KeptT:
        """What was made for the batch at hand, or is made now."""
        if routing.batch not in self._kept:
            self._kept = {batch: kept for batch, kept in self._kept.items() if batch in routing.batches}
            self._kept[routing.batch] = make()
        return self._kept[routing.batch]
