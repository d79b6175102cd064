"""Which LoRA slots the rows of a batch use: one `SlotRouting` a model, which all of its layers look up.

A batch's slots become tensors once, not once a layer, and stay for as long as the same batch comes again: a picture's
steps follow one another with the same slots.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final, Generic, Literal, TypeVar

import torch
from torch import Tensor

#: LoRAs a row that programs have room for themselves, and a rank that most LoRAs do not exceed.
MAX_ADAPTERS_PER_ROW: Final = 2
COMPACT_RANK: Final = 16
#: By what a batch's slots hold, which of the compiler's programs runs (`engine.slot_programs`): plain LoRAs of small
#: rank; of any rank that slots hold, with DoRA's gains; or whatever else there may be.
Form = Literal["compact", "full", "any"]

#: How many different batches are remembered. Batches of two picture sizes take turns, so one would not do; layers keep
#: copies of factors for each, so batches that do not come again cost memory for nothing.
_REMEMBERED: Final = 2


@dataclass(frozen=True, slots=True)
class SlotUse:
    """A slot that a row uses, and the scale of the LoRA in it. Slot 0 is no LoRA."""

    slot: int
    scale: float


@dataclass(frozen=True, slots=True)
class SlotContent:
    """What a slot holds over all layers: the largest rank, and whether there are DoRA's gains or a LoKr."""

    rank: int = 0
    has_gains: bool = False
    has_kronecker: bool = False


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
        self._contents: dict[int, SlotContent] = {}
        self.remembered: frozenset[int] = frozenset()
        self.is_active = False
        self.form: Form = "compact"
        nothing = torch.zeros(0, 1, dtype=torch.long, device=device)
        self._follow(Route(0, None, nothing, nothing.float(), frozenset(), None))

    def forget(self) -> None:
        """Forget all routes: a slot holds something else now, and what layers gathered from it is void.

        The next batch gets a new number, whatever it uses; the layers drop the old factors when they gather for it.
        """
        self._routes.clear()

    def note(self, slot: int, rank: int = 0, *, has_gains: bool = False, has_kronecker: bool = False) -> None:
        """Note what a layer's slot holds from now on, beside what is noted of other layers."""
        held = self._contents.get(slot, SlotContent())
        self._contents[slot] = SlotContent(
            max(held.rank, rank), held.has_gains or has_gains, held.has_kronecker or has_kronecker
        )

    def note_empty(self, slot: int) -> None:
        """Note that no layer has anything in this slot."""
        self._contents.pop(slot, None)

    @contextmanager
    def using(self, uses: Sequence[Sequence[SlotUse]], form: Form | None = None) -> Iterator[None]:
        """Route a batch for the duration of the block: one sequence of slot uses a row.

        `form` is for programs that are made ahead, with empty slots.
        """
        # a LoRA at scale 0 changes nothing: its row is left out, and draws bit for bit what it draws without
        self._route(tuple(tuple(use for use in row if use.slot and use.scale) for row in uses))
        self.form = form or self.form
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
            rows=None if len(chosen) == len(uses) else self._tensor(list(chosen)),
            slots=self._tensor([[use.slot for use in row] for row in padded]),
            scales=self._tensor([[use.scale for use in row] for row in padded]),
            slots_used=frozenset(use.slot for use in different),
            shared=different.pop() if width == 1 and len(different) == 1 else None,
        )

    def _tensor(self, values: Sequence[object]) -> Tensor:
        # an ordinary tensor wherever it is asked for: to a compiled network one that was made in inference mode is of
        # another kind, and would be another program
        with torch.inference_mode(mode=False):
            return torch.tensor(values, device=self._device)

    def _follow(self, route: Route) -> None:
        # attributes of this one object, not a route that changes: a compiled network takes the tensors for its inputs
        self.route_number, self.rows, self.slots, self.scales = route.number, route.rows, route.slots, route.scales
        self.slots_used, self.shared = route.slots_used, route.shared
        self.form = self._form_of(route)

    def _form_of(self, route: Route) -> Form:
        held = [self._contents.get(slot, SlotContent()) for slot in route.slots_used]
        if route.slots.shape[1] > MAX_ADAPTERS_PER_ROW or any(each.has_kronecker for each in held):
            return "any"
        return "full" if any(each.has_gains or each.rank > COMPACT_RANK for each in held) else "compact"


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
