"""How a layer's LoRAs are written in the programs that a compiler makes: nothing here asks what is in a slot.

Slots, scales and factors are numbers to a program. What decides between programs is the form of a batch
(`slot_routing.Form`). Up to two plain or weight-decomposed LoRAs a row are products in the program itself. All else (a
LoKr of full rank, more LoRAs) is one operator that the compiler does not look into, so it may be of any shape.

Rows keep their LoRAs from step to step, so a batch's factors are gathered, scaled and put beside the weights once,
outside of the programs (`SlotLinear.hold`), as long as there are no more of them than one row may have
(`lora_factors.is_held`). Batches with more gather them within the program.
"""

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from schnell.engine.lora_factors import low_rank_sum, program_rank
from schnell.engine.quantized import QuantizedLinear, TwoPathLinear
from schnell.engine.slot_routing import Form, SlotRouting
from schnell.engine.weight_names import LayerRows
from schnell.engine.widened_linear import WidenedLinear, WidenedQuantizedLinear, products_with_columns

#: A gain as small as this is taken for this: factors are divided by it.
_LEAST_GAIN: Final = 1e-6

#: Down [rows, parts * uses * rank, in], up [rows, uses * rank, out], and the outputs' gains (rows, 1, out) or None.
ProgramFactors = tuple[Tensor, Tensor, Tensor | None]


def factors_for_programs(down: Tensor, up: Tensor, gain: Tensor, routing: SlotRouting) -> ProgramFactors:
    """A batch's factors out of a layer's stacks, scaled, as deep as the batch's form says; gains in float32.

    Where there are gains, the way up is divided by them: they multiply its sum with the layer's own product.
    """
    slots, scales, rank = routing.slots, routing.scales, program_rank(routing, up.shape[1])
    of_down = down[:, :, :rank][slots].transpose(1, 2).flatten(1, 3)  # (rows, parts, uses, rank, in)
    of_up = (up[:, :rank][slots] * scales.to(up.dtype)[..., None, None]).flatten(1, 2)
    if routing.form == "compact":
        return of_down, of_up, None
    gains = gains_of(gain, slots, scales)
    return of_down, (of_up / gains).to(up.dtype), gains


def gains_of(gain: Tensor, slots: Tensor, scales: Tensor) -> Tensor:
    """What DoRA multiplies the rows' outputs with, (rows, 1, out) in float32: 1 + s*(g - 1), summed over LoRAs.

    No gain is 0 to the last digit: factors are divided by it, so that it can be multiplied into their sum with the
    layer's own product, in whatever pass comes next.
    """
    total = 1 + (scales[..., None] * gain[slots].float()).sum(1, keepdim=True)
    return torch.where(total.abs() < _LEAST_GAIN, _LEAST_GAIN, total)


class HeldFactors(nn.Module):
    """The LoRAs of a batch in one layer: gathered and scaled once, and beside the weights if there is room.

    `down` [rows, parts * uses * rank, in] and `up` [rows, uses * rank, out] are those that products need besides.
    """

    down: Tensor | None
    up: Tensor | None
    gain: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        for name in ("down", "up", "gain"):
            self.register_buffer(name, None, persistent=False)
        self._of: tuple[int, Form, int] | None = None

    def hold(self, routing: SlotRouting, base: nn.Module, make: Callable[[], ProgramFactors]) -> None:
        """Hold the factors that `make` gives, unless the same batch came last and no slot has changed since."""
        wide = _widened_now(base)
        of = (routing.route_number, routing.form, id(wide))
        if of == self._of:
            return
        # what fails half way must not be taken for done
        self._of = None
        # ordinary tensors wherever this is asked for, as a batch's slots are (`SlotRouting`)
        with torch.inference_mode(mode=False), torch.no_grad():
            down, up, self.gain = make()
        self.down, self.up = wide.hold(down, up) if wide is not None else (down, up)
        self._of = of

    def forward(self, x: Tensor, base: nn.Module, parts: Sequence[LayerRows]) -> Tensor:
        """(rows, tokens, in) to (rows, tokens, out): the layer's product and the LoRAs that are held, without gains."""
        wide = _widened_now(base)
        if wide is not None:
            return wide.with_held(x, self.down, self.up, parts)
        assert self.down is not None  # noqa: S101 - for the type checker: held before a program runs
        assert self.up is not None  # noqa: S101
        y: Tensor = base(x)
        return y + low_rank_sum(torch.bmm(x, self.down.transpose(1, 2)), self.up, parts)


def along_tokens(products: Sequence[tuple[HeldFactors, nn.Module, Tensor]]) -> Tensor | None:
    """Layers' products of one row, each of its own tokens, in one tensor (1, tokens of all, out), with what is held.

    None where they cannot be written there by themselves.
    """
    wides = [(x, _widened_now(base), held.down) for held, base, x in products if held.gain is None]
    found = [(x, wide, down) for x, wide, down in wides if isinstance(wide, WidenedLinear) and down is not None]
    return products_with_columns(found) if len(found) == len(products) else None


def widened(base: nn.Module, parts: Sequence[LayerRows], rank: int) -> nn.Module:
    """The layer with room for LoRAs beside its weights, where these are plain ones or in float8."""
    if type(base) is nn.Linear:
        return WidenedLinear(base, parts, rank)
    if isinstance(base, QuantizedLinear) and base.arithmetic is not None and base.arithmetic.has_exponents:
        return WidenedQuantizedLinear(base, base.arithmetic, parts, rank)
    if isinstance(base, TwoPathLinear):
        base.exact, base.quantized = widened(base.exact, parts, rank), widened(base.quantized, parts, rank)
    return base


def _widened_now(base: nn.Module) -> WidenedLinear | WidenedQuantizedLinear | None:
    now = base.now() if isinstance(base, TwoPathLinear) else base
    return now if isinstance(now, WidenedLinear | WidenedQuantizedLinear) else None
