"""How a layer's LoRAs are written in the programs that a compiler makes: nothing here asks what is in a slot.

Slots, scales and factors are numbers to a program. What decides between programs is the form of a batch
(`slot_routing.Form`). Up to two plain or weight-decomposed LoRAs a row are products in the program itself. All else (a
LoKr of full rank, more LoRAs) is one operator that the compiler does not look into, so it may be of any shape.

At 1024x1024 a LoRA costs what it reads and writes. Added to a layer's outputs it reads the inputs once more for the way
down, and the outputs are written and read once more. A `WidenedLinear` saves one of the two.

A row keeps its LoRAs from step to step, so for a batch of one row the factors are gathered, scaled and put beside the
weights once, outside of the programs (`SlotLinear.hold`). Batches of more rows gather them within the program.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from typing import Any, Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.quantized import TwoPathLinear
from schnell.engine.slot_routing import COMPACT_RANK, MAX_ADAPTERS_PER_ROW, Form, SlotRouting
from schnell.engine.weight_names import LayerRows

#: Ranks (all of a row's LoRAs together) up to which a layer takes them as further columns: a part's columns multiply
#: zeros for the other parts, and above this the additional arithmetic costs more than the passes that it saves.
_MOST_COLUMNS: Final = 64
#: A gain as small as this is taken for this: factors are divided by it.
_LEAST_GAIN: Final = 1e-6
_numbers: Final = count()
#: Layers by their numbers, for the operator that a program calls: it can be given tensors only.
_layers: Final[WeakValueDictionary[int, Any]] = WeakValueDictionary()


def plan_ranks(rank: int) -> tuple[int, ...]:
    """The ranks, summed over a row's LoRAs, that programs are made for if slots hold up to `rank`."""
    return tuple(sorted({uses * each for uses in _uses() for each in (min(COMPACT_RANK, rank), rank)}))


def _uses() -> range:
    return range(1, MAX_ADAPTERS_PER_ROW + 1)


def takes_columns(in_features: int, out_features: int, rank: int, *, of_tokens: bool = True) -> bool:
    """Whether LoRAs of this rank are further columns of such a layer's weights, or further rows.

    A layer that is not `of_tokens` multiplies one vector a row, as modulation does.
    """
    # columns read the inputs once more, and pad them; rows write and read the outputs once more, which are a launch
    # less, and nothing where there is one vector
    return of_tokens and in_features < out_features and rank <= _MOST_COLUMNS


def widened_numbers(in_features: int, out_features: int, parts: int, rank: int, *, of_tokens: bool = True) -> int:
    """How many more numbers such a layer holds than its weights if it is widened for slots of this rank."""
    columns, rows = _room(in_features, out_features, parts, rank, of_tokens=of_tokens)
    return (out_features + rows) * (in_features + columns) - out_features * in_features


def _room(in_features: int, out_features: int, parts: int, rank: int, *, of_tokens: bool) -> tuple[int, int]:
    ranks = plan_ranks(rank)
    columns = [each for each in ranks if takes_columns(in_features, out_features, each, of_tokens=of_tokens)]
    rows = [each for each in ranks if each not in columns]
    return parts * max(columns, default=0), parts * max(rows, default=0)


class WidenedLinear(nn.Module):
    """`nn.Linear` over the same numbers, with room beside the weights for the LoRAs of one row.

    Where inputs are narrower than what comes out, they are further columns: [x|h]·[W|B]ᵀ in place of x·Wᵀ + h·Bᵀ. Where
    they are not, further rows give the way down with the layer's own product: x·[W;A]ᵀ. Both are written when a batch's
    LoRAs are others than the last one's, so switching is still an index. For one row, since all rows of a product share
    its weights.
    """

    wide: Tensor
    own: Tensor
    long_bias: Tensor | None

    def __init__(self, base: nn.Linear, parts: Sequence[LayerRows], rank: int, *, of_tokens: bool = True) -> None:
        super().__init__()
        define_operators()
        self._of_tokens = of_tokens
        self.in_features, self.out_features, self.bias = base.in_features, base.out_features, base.bias
        columns, rows = _room(base.in_features, base.out_features, len(parts), rank, of_tokens=of_tokens)
        wide = base.weight.new_zeros(base.out_features + rows, base.in_features + columns)
        wide[: base.out_features, : base.in_features].copy_(base.weight)
        self.register_buffer("wide", wide, persistent=False)
        # which outputs are whose: each part's see the columns of that part alone
        own = wide.new_zeros(base.out_features, len(parts))
        for index, part in enumerate(parts):
            own[part.start : part.stop, index] = 1
        self.register_buffer("own", own, persistent=False)
        padded = None if base.bias is None else torch.cat([base.bias.detach(), wide.new_zeros(rows)])
        self.register_buffer("long_bias", padded, persistent=False)

    def full_weight(self) -> Tensor:
        """The layer's own matrix [out, in], a view."""
        return self.wide[: self.out_features, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), without LoRAs."""
        return F.linear(x, self.full_weight(), self.bias)

    def hold(self, down: Tensor, up: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Write the LoRAs of one row beside the weights: `down` [parts * rank, in], `up` [rank, out] with its scales.

        Gives the two, or None for the one that is beside the weights from now on.
        """
        if not takes_columns(self.in_features, self.out_features, len(up), of_tokens=self._of_tokens):
            self.wide[self.out_features : self.out_features + len(down), : self.in_features].copy_(down)
            return None, up
        columns = self.wide[: self.out_features, self.in_features : self.in_features + len(down)]
        # what is not a part's own is zeros: parts lie elsewhere when LoRAs of another rank come
        torch.mul(up.T[:, None], self.own[:, :, None], out=columns.view(self.out_features, -1, len(up)))
        return down, None

    def with_held(self, x: Tensor, down: Tensor | None, up: Tensor | None, parts: Sequence[LayerRows]) -> Tensor:
        """One row (1, ..., in) to (1, ..., out), with the LoRAs that `hold` wrote, and what it gave."""
        out = self.out_features
        if down is not None:
            # padded by whatever pass makes the inputs, so that the way down finds its place beside them
            padded = F.pad(x, (0, len(down)))
            beside: Tensor = torch.ops.schnell.product_with_columns(padded, down, self.wide, self.bias, out)
            return beside
        assert up is not None  # noqa: S101 - for the type checker: one of the two is beside the weights
        stop = out + len(parts) * len(up)
        bias = None if self.long_bias is None else self.long_bias[:stop]
        both = F.linear(x, self.wide[:stop, : self.in_features], bias)
        low = low_rank_sum(both[..., out:].view(1, -1, stop - out), up[None], parts)
        return both[..., :out] + low.view(*x.shape[:-1], out)


def low_rank_sum(hidden: Tensor, up: Tensor, parts: Sequence[LayerRows]) -> Tensor:
    """`hidden` (rows, tokens, parts * rank) to (rows, tokens, out) by each part's columns of `up` [rows, rank, out]."""
    lows = torch.split(hidden, up.shape[1], dim=-1)
    sums = [torch.bmm(low, up[..., part.start : part.stop]) for low, part in zip(lows, parts, strict=True)]
    return sums[0] if len(sums) == 1 else torch.cat(sums, dim=-1)


def number_of(layer: nn.Module) -> Tensor:
    """A number by which operators find this layer, as they can be given it: on the CPU, so that nobody waits."""
    number = next(_numbers)
    _layers[number] = layer
    return torch.tensor(number, device="cpu")


@cache  # an operator can be defined once
def define_operators() -> None:
    """Define the operators `schnell::product_with_columns` and `add_side_paths`.

    The first writes into room that nobody else reads, beside the inputs. To the compiler it changes nothing, or it
    would copy the inputs to keep them as they were.
    """
    # schemas are written out, since releases of torch differ in which annotations they can read
    columns = torch.library.custom_op(
        "schnell::product_with_columns",
        _product_with_columns,
        mutates_args=(),
        schema="(Tensor padded, Tensor down, Tensor wide, Tensor? bias, SymInt out) -> Tensor",
    )
    columns.register_fake(lambda padded, _down, _wide, _bias, out: padded.new_empty(*padded.shape[:-1], out))
    torch.library.custom_op(
        "schnell::add_side_paths",
        _add_side_paths,
        mutates_args=("y",),
        schema="(Tensor x, Tensor(a!) y, Tensor number) -> ()",
    )


def _product_with_columns(padded: Tensor, down: Tensor, wide: Tensor, bias: Tensor | None, out: int) -> Tensor:
    flat = padded.flatten(0, -2)
    start = flat.shape[1] - len(down)
    torch.mm(flat[:, :start], down.T, out=flat[:, start:])
    return F.linear(padded, wide[:out, : flat.shape[1]], bias)


def _add_side_paths(x: Tensor, y: Tensor, number: Tensor) -> None:
    _layers[int(number)].add_to(x, y)


#: Down [rows, parts * uses * rank, in], up [rows, uses * rank, out], and the outputs' gains (rows, 1, out) or None.
ProgramFactors = tuple[Tensor, Tensor, Tensor | None]


def factors_for_programs(down: Tensor, up: Tensor, gain: Tensor, routing: SlotRouting) -> ProgramFactors:
    """A batch's factors out of a layer's stacks, scaled, as deep as the batch's form says; gains in float32.

    Where there are gains, the way up is divided by them: they multiply its sum with the layer's own product.
    """
    slots, scales, planned = routing.slots, routing.scales, up.shape[1]
    rank = min(COMPACT_RANK, planned) if routing.form == "compact" else planned
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
    """The LoRAs of a batch of one row in one layer: gathered and scaled once, and beside the weights if there is room.

    `down` [parts * uses * rank, in] and `up` [uses * rank, out] are those that products need besides.
    """

    down: Tensor | None
    up: Tensor | None
    gain: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        for name in ("down", "up", "gain"):
            self.register_buffer(name, None, persistent=False)
        self._of: tuple[int, Form, bool] | None = None

    def hold(self, routing: SlotRouting, base: nn.Module, make: Callable[[], ProgramFactors]) -> None:
        """Hold the factors that `make` gives, unless the same batch came last and no slot has changed since."""
        wide = _widened_now(base)
        of = (routing.route_number, routing.form, wide is not None)
        if of == self._of:
            return
        # what fails half way must not be taken for done
        self._of = None
        # ordinary tensors wherever this is asked for, as a batch's slots are (`SlotRouting`)
        with torch.inference_mode(mode=False), torch.no_grad():
            downs, ups, self.gain = make()
        self.down, self.up = wide.hold(downs[0], ups[0]) if wide is not None else (downs[0], ups[0])
        self._of = of

    def forward(self, x: Tensor, base: nn.Module, parts: Sequence[LayerRows]) -> Tensor:
        """One row (1, ..., in) to (1, ..., out): the layer's product and the LoRAs that are held, without gains."""
        wide = _widened_now(base)
        if wide is not None:
            return wide.with_held(x, self.down, self.up, parts)
        assert self.down is not None  # noqa: S101 - for the type checker: held before a program runs
        assert self.up is not None  # noqa: S101
        y: Tensor = base(x)
        return y + low_rank_sum(F.linear(x, self.down).view(1, -1, len(self.down)), self.up[None], parts).view_as(y)


def _widened_now(base: nn.Module) -> WidenedLinear | None:
    now = base.exact_now() if isinstance(base, TwoPathLinear) else base
    return now if isinstance(now, WidenedLinear) else None
