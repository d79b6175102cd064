"""FLUX's blocks through torch's compiler, block by block, so that no request ever waits for it.

All blocks of a kind are one program over other weights. There is one for each number of rows (`ROWS`) and for none, one
or two LoRAs a row; the number of tokens is open, so picture sizes share it. Which LoRAs a batch uses are numbers to it
(`engine.slot_linear`). A batch with DoRA, with a LoKr whose delta is no low-rank product, or with another number of
rows or LoRAs runs the same blocks uncompiled: the gains would cost every other batch a pass over every output, and a
LoKr's factors have shapes of their own.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from schnell.engine.denoise import position_ids
from schnell.engine.flux import Flux
from schnell.engine.slot_linear import MAX_ADAPTERS_PER_ROW
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.spec import Size

#: Rows of a batch for which there is a program.
ROWS: Final = (1, 2, 4)
_MOST_PROGRAMS: Final = 64
#: Two sizes, so that the compiler sees that the number of tokens varies.
_WARM_GRIDS: Final = (Size(16, 16), Size(16, 24))


class CompiledBlocks:
    """Runs a network's blocks compiled from now on; its slots must be reserved. `backend` is torch.compile's."""

    def __init__(self, network: Flux, routing: SlotRouting, backend: str | Callable[..., Any] = "inductor") -> None:
        self._network, self._routing = network, routing
        # a program a case and a kind of block; the compiler would give up after 8 of them
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_PROGRAMS)
        self._compiled: dict[nn.Module, Any] = {
            block: torch.compile(block, backend=backend, dynamic=None)
            for block in (*network.double_blocks, *network.single_blocks)
        }
        network.run_block = self._run

    def _run(self, block: nn.Module, *inputs: Tensor) -> Any:
        if len(inputs[0]) not in ROWS or (self._routing.is_active and not self._has_program()):
            return block(*inputs)
        return self._compiled[block](*inputs)

    def _has_program(self) -> bool:
        """A row with more LoRAs than most have would be a program that nobody has made before."""
        return self._routing.is_low_rank and self._routing.slots.shape[1] <= MAX_ADAPTERS_PER_ROW

    def warm_up(self, text_tokens: int, device: torch.device, dtype: torch.dtype) -> Iterator[float]:
        """Make all programs, with empty slots; yields the share that is done, from 0 to 1."""
        cases = list(_warm_cases())
        for done, (rows, uses) in enumerate(cases):
            yield done / len(cases)
            for grid in _WARM_GRIDS:
                with torch.inference_mode(), self._routing.using([uses] * rows):
                    self._network(*self._inputs(rows, grid, text_tokens, device, dtype))
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


def _warm_cases() -> Iterator[tuple[int, Sequence[SlotUse]]]:
    for rows in ROWS:
        for count in range(MAX_ADAPTERS_PER_ROW + 1):
            yield rows, tuple(SlotUse(slot, 1.0) for slot in range(1, count + 1))
