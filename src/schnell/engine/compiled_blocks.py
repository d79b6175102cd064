"""FLUX's blocks through torch's compiler, block by block, so that no request ever waits for it.

All blocks of a kind are one program over other weights. There is one for each number of rows (`ROWS`), for none, one or
two LoRAs a row, of small and of the largest rank with DoRA's gains, and one for whatever else a row may name
(`engine.slot_programs`). The number of tokens is open, so picture sizes share it. Which LoRAs a batch uses are numbers
to a program.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from schnell.engine.denoise import position_ids
from schnell.engine.flux import Flux, run_plainly
from schnell.engine.joined_modulation import join_modulation
from schnell.engine.slot_linear import SlotLinear
from schnell.engine.slot_routing import MAX_ADAPTERS_PER_ROW, Form, SlotRouting, SlotUse
from schnell.spec import Size

#: Rows of a batch for which there is a program.
ROWS: Final = (1, 2, 4)
#: Of one kind of block: for each of these two precisions, on several devices.
_MOST_PROGRAMS: Final = 256
#: Two sizes: the second shows that the first's programs are for any number of tokens.
_WARM_GRIDS: Final = (Size(16, 16), Size(16, 24))


#: Rows, what each of them uses, and the form of the batch.
WarmCase = tuple[int, Sequence[SlotUse], Form]


class CompiledBlocks:
    """Runs a network's blocks compiled from now on, until `stop`; its slots must be reserved.

    `backend` is torch.compile's.
    """

    def __init__(self, network: Flux, routing: SlotRouting, backend: str | Callable[..., Any] = "inductor") -> None:
        self._network, self._routing = network, routing
        self._is_warming_up = False
        # a program a case and a kind of block; the compiler would give up after 8 of them
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_PROGRAMS)
        compile_part = partial(torch.compile, backend=backend, dynamic=None)
        self._compiled: dict[nn.Module, Any] = {
            block: compile_part(block) for block in (*network.double_blocks, *network.single_blocks)
        }
        self._modulation = join_modulation(network, compile_part)
        joined = self._modulation.layers if self._modulation else frozenset[nn.Module]()
        self._layers = {
            block: [each for each in block.modules() if isinstance(each, SlotLinear) and each not in joined]
            for block in self._compiled
        }
        self.start()

    def start(self) -> None:
        """Run the network's blocks compiled."""
        self._network.run_block, self._network.modulate = self._run, self._modulation

    def stop(self) -> None:
        """Run the network's blocks as they are."""
        self._network.run_block, self._network.modulate = run_plainly, None

    def _run(self, block: nn.Module, *inputs: Tensor) -> Any:
        if len(inputs[0]) not in ROWS:
            return block(*inputs)
        if self._is_warming_up:
            # otherwise a program would be made for the first size, and another, for all sizes, at the second
            torch._dynamo.maybe_mark_dynamic(inputs[0], 1)
            torch._dynamo.maybe_mark_dynamic(inputs[-1], 0)
        if self._routing.is_active:
            for layer in self._layers[block]:
                layer.hold()
        return self._compiled[block](*inputs)

    def warm_up(
        self, text_tokens: int, device: torch.device, dtype: torch.dtype, chosen: Sequence[WarmCase] | None = None
    ) -> Iterator[float]:
        """Make all programs, or those of the `chosen` cases, with empty slots; yields the share done, from 0 to 1."""
        cases = list(_warm_cases() if chosen is None else chosen)
        for done, (rows, uses, form) in enumerate(cases):
            yield done / len(cases)
            self._is_warming_up = True
            try:
                for grid in _WARM_GRIDS:
                    with torch.inference_mode(), self._routing.using([uses] * rows, form):
                        self._network(*self._inputs(rows, grid, text_tokens, device, dtype))
            finally:
                self._is_warming_up = False
        yield 1.0

    def _inputs(
        self, rows: int, grid: Size, text_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        params = self._network.params
        return (
            torch.zeros(rows, grid.width * grid.height, params.in_channels, device=device, dtype=dtype),
            torch.zeros(rows, text_tokens, params.context_in_dim, device=device, dtype=dtype),
            position_ids(grid, text_tokens),
            torch.ones(rows, device=device),
            torch.zeros(rows, params.vec_in_dim, device=device, dtype=dtype),
        )


def _warm_cases() -> Iterator[WarmCase]:
    for rows in ROWS:
        yield rows, (), "compact"
        # one slot is enough: how many LoRAs a row names is nothing that this program sees
        yield rows, (SlotUse(1, 1.0),), "any"
        for count in range(1, MAX_ADAPTERS_PER_ROW + 1):
            uses = tuple(SlotUse(slot, 1.0) for slot in range(1, count + 1))
            yield rows, uses, "compact"
            yield rows, uses, "full"
