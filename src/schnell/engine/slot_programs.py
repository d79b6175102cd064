"""How a layer's LoRAs are written in the programs that a compiler makes: nothing here asks what is in a slot.

Slots, scales and factors are numbers to a program. What decides between programs is the form of a batch
(`slot_routing.Form`). Up to two plain or weight-decomposed LoRAs a row are products in the program itself. All else (a
LoKr of full rank, more LoRAs) is one operator that the compiler does not look into, so it may be of any shape.

At 1024x1024 a LoRA costs what it reads and writes. Added to a layer's outputs it reads the inputs once more for the way
down, and the outputs are written and read once more. A `WidenedLinear` saves one of the two.
"""

from collections.abc import Sequence
from functools import cache
from itertools import count
from typing import Any, Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.slot_routing import COMPACT_RANK, MAX_ADAPTERS_PER_ROW
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


def takes_columns(in_features: int, out_features: int, rank: int) -> bool:
    """Whether LoRAs of this rank are further columns of such a layer's weights, or further rows."""
    # columns read the inputs once more, rows write and read the outputs once more
    return in_features < 2 * out_features and rank <= _MOST_COLUMNS


def widened_numbers(in_features: int, out_features: int, parts: int, rank: int) -> int:
    """How many more numbers such a layer holds than its weights if it is widened for slots of this rank."""
    columns, rows = _room(in_features, out_features, parts, rank)
    return (out_features + rows) * (in_features + columns) - out_features * in_features


def _room(in_features: int, out_features: int, parts: int, rank: int) -> tuple[int, int]:
    ranks = plan_ranks(rank)
    columns = [each for each in ranks if takes_columns(in_features, out_features, each)]
    rows = [each for each in ranks if not takes_columns(in_features, out_features, each)]
    return parts * max(columns, default=0), parts * max(rows, default=0)


class WidenedLinear(nn.Module):
    """`nn.Linear` over the same numbers, with room beside the weights for the LoRAs of one row.

    Where inputs are narrower than what comes out, they are further columns: [x|h]·[W|B]ᵀ in place of x·Wᵀ + h·Bᵀ. Where
    they are wider, further rows give the way down with the layer's own product: x·[W;A]ᵀ. Both are written anew at
    every step, a hundredth of the weights, so switching is still an index. For one row, since all rows of a product
    share its weights.
    """

    wide: Tensor
    own: Tensor

    def __init__(self, base: nn.Linear, parts: Sequence[LayerRows], rank: int) -> None:
        super().__init__()
        define_operators()
        self.in_features, self.out_features, self.bias = base.in_features, base.out_features, base.bias
        columns, rows = _room(base.in_features, base.out_features, len(parts), rank)
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

    def with_factors(self, x: Tensor, down: Tensor, up: Tensor, parts: Sequence[LayerRows]) -> Tensor:
        """One row (1, tokens, in) to (1, tokens, out); `down` [parts * rank, in], `up` [rank, out] with its scales."""
        if takes_columns(self.in_features, self.out_features, len(up)):
            # padded where the inputs are made, so that the way down finds its place beside them: no pass of its own
            padded = F.pad(x, (0, len(down)))
            beside: Tensor = torch.ops.schnell.product_with_columns(padded, down, up, self.own, self.wide, self.bias)
            return beside
        both: Tensor = torch.ops.schnell.product_with_rows(x, down, self.wide, self.long_bias, self.out_features)
        hidden = both[..., self.out_features :]
        return both[..., : self.out_features] + low_rank_sum(hidden, up[None], parts)


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
    """Define the operators `schnell::product_with_columns`, `product_with_rows` and `add_side_paths`.

    The first two write into room that nobody else reads: beside the weights, and beside the inputs. To the compiler
    they change nothing, or it would copy whole weights to keep them as they were.
    """
    # schemas are written out, since releases of torch differ in which annotations they can read
    columns = torch.library.custom_op(
        "schnell::product_with_columns",
        _product_with_columns,
        mutates_args=(),
        schema="(Tensor padded, Tensor down, Tensor up, Tensor own, Tensor wide, Tensor? bias) -> Tensor",
    )
    columns.register_fake(
        lambda padded, _down, _up, _own, wide, bias: padded.new_empty(
            *padded.shape[:-1], len(wide) if bias is None else len(bias)
        )
    )
    rows = torch.library.custom_op(
        "schnell::product_with_rows",
        _product_with_rows,
        mutates_args=(),
        schema="(Tensor x, Tensor down, Tensor wide, Tensor? bias, SymInt out) -> Tensor",
    )
    rows.register_fake(lambda x, down, _wide, _bias, out: x.new_empty(*x.shape[:-1], out + len(down)))
    torch.library.custom_op(
        "schnell::add_side_paths",
        _add_side_paths,
        mutates_args=("y",),
        schema="(Tensor x, Tensor(a!) y, Tensor number) -> ()",
    )


def _product_with_columns(  # noqa: PLR0913, PLR0917 - an operator takes tensors, and no object that holds them
    padded: Tensor, down: Tensor, up: Tensor, own: Tensor, wide: Tensor, bias: Tensor | None
) -> Tensor:
    flat = padded.flatten(0, -2)
    (out, parts), stop = own.shape, flat.shape[1]
    start = stop - len(down)
    torch.mm(flat[:, :start], down.T, out=flat[:, start:])
    room = wide[:out, start:stop].view(out, parts, len(up))
    torch.mul(up.T[:, None], own[:, :, None], out=room)
    return F.linear(padded, wide[:out, :stop], bias)


def _product_with_rows(x: Tensor, down: Tensor, wide: Tensor, bias: Tensor | None, out: int) -> Tensor:
    stop = out + len(down)
    weights = wide[:stop, : x.shape[-1]]
    weights[out:].copy_(down)
    return F.linear(x, weights, None if bias is None else bias[:stop])


def _add_side_paths(x: Tensor, y: Tensor, number: Tensor) -> None:
    _layers[int(number)].add_to(x, y)


def gathered(down: Tensor, up: Tensor, slots: Tensor, scales: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors of rows that use `slots` (rows, uses) at `scales`, of the stacks' first `rank`: down [rows,
    parts * uses * rank, in] and up [rows, uses * rank, out]."""
    of_down = down[:, :, :rank][slots].transpose(1, 2).flatten(1, 3)  # (rows, parts, uses, rank, in)
    of_up = up[:, :rank][slots] * scales.to(up.dtype)[..., None, None]
    return of_down, of_up.flatten(1, 2)


def gains_of(gain: Tensor, slots: Tensor, scales: Tensor) -> Tensor:
    """What DoRA multiplies the rows' outputs with, (rows, 1, out) in float32: 1 + s*(g - 1), summed over LoRAs.

    No gain is 0 to the last digit: factors are divided by it, so that it can be multiplied into their sum with the
    layer's own product, in whatever pass comes next.
    """
    total = 1 + (scales[..., None] * gain[slots].float()).sum(1, keepdim=True)
    return torch.where(total.abs() < _LEAST_GAIN, _LEAST_GAIN, total)
