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


def takes_columns(in_features: int, out_features: int, rank: int) -> bool:
    """Whether LoRAs of this rank are further columns of such a layer's weights, or further rows."""
    # columns read the inputs once more; rows write and read the outputs once more
    return in_features < out_features and rank <= _MOST_COLUMNS


def widened_numbers(in_features: int, out_features: int, parts: int, rank: int) -> int:
    """How many more numbers such a layer holds than its weights if it is widened for slots of this rank."""
    columns, rows = _room(in_features, out_features, parts, rank)
    return (out_features + rows) * (in_features + columns) - out_features * in_features


def _room(in_features: int, out_features: int, parts: int, rank: int) -> tuple[int, int]:
    ranks = plan_ranks(rank)
    columns = [each for each in ranks if takes_columns(in_features, out_features, each)]
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

    def hold(self, down: Tensor, up: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Write the LoRAs of one row beside the weights: `down` [parts * rank, in], `up` [rank, out] with its scales.

        Gives the two, or None for the one that is beside the weights from now on.
        """
        if not takes_columns(self.in_features, self.out_features, len(up)):
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
            return products_with_columns([(x, self, down)])
        assert up is not None  # noqa: S101 - for the type checker: one of the two is beside the weights
        stop = out + len(parts) * len(up)
        bias = None if self.long_bias is None else self.long_bias[:stop]
        both = F.linear(x, self.wide[:stop, : self.in_features], bias)
        low = low_rank_sum(both[..., out:].view(1, -1, stop - out), up[None], parts)
        return both[..., :out] + low.view(*x.shape[:-1], out)


def products_with_columns(products: Sequence[tuple[Tensor, WidenedLinear, Tensor]]) -> Tensor:
    """Layers of one row, each over its own tokens (1, tokens, in), with the LoRAs that are columns beside the weights.

    With each layer's way down [parts * rank, in]; gives (1, tokens of all, out).
    """
    padded = []
    for x, _, down in products:
        room = torch.ops.schnell.room_for_columns(down, x.shape[-2])
        # in this form the compiler lets whatever pass makes the inputs write them here
        room.as_strided(x.shape, room.stride()).copy_(x)
        padded.append(room)
    layers, downs = [layer for _, layer, _ in products], [down for *_, down in products]
    wides, biases = [layer.wide for layer in layers], [layer.bias for layer in layers]
    joined: Tensor = torch.ops.schnell.products_with_columns(padded, downs, wides, biases, layers[0].out_features)
    return joined


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
    """Define the operators `schnell::room_for_columns`, `products_with_columns` and `add_side_paths`.

    The second writes into room that nobody else reads, beside the inputs. To the compiler it changes nothing, or it
    would copy the inputs to keep them as they were.
    """
    # schemas are written out, since releases of torch differ in which annotations they can read
    room = torch.library.custom_op(
        "schnell::room_for_columns", _room_for_columns, mutates_args=(), schema="(Tensor down, SymInt tokens) -> Tensor"
    )
    room.register_fake(_room_for_columns)
    products = torch.library.custom_op(
        "schnell::products_with_columns",
        _products_with_columns,
        mutates_args=(),
        schema="(Tensor[] padded, Tensor[] down, Tensor[] wide, Tensor?[] bias, SymInt out) -> Tensor",
    )
    products.register_fake(lambda padded, _down, _wide, _bias, out: _empty_outputs(padded, out))
    torch.library.custom_op(
        "schnell::add_side_paths",
        _add_side_paths,
        mutates_args=("y",),
        schema="(Tensor x, Tensor(a!) y, Tensor number) -> ()",
    )


def _room_for_columns(down: Tensor, tokens: int) -> Tensor:
    return down.new_empty(1, tokens, down.shape[0] + down.shape[1])


def _products_with_columns(
    padded: list[Tensor], down: list[Tensor], wide: list[Tensor], bias: list[Tensor | None], out: int
) -> Tensor:
    products, start = _empty_outputs(padded, out), 0
    for room, factors, weights, added in zip(padded, down, wide, bias, strict=True):
        flat, stop = room[0], start + room.shape[1]
        inputs = flat.shape[1] - len(factors)
        torch.mm(flat[:, :inputs], factors.T, out=flat[:, inputs:])
        columns, target = weights[:out, : flat.shape[1]].T, products[0, start:stop]
        if added is None:
            torch.mm(flat, columns, out=target)
        else:
            torch.addmm(added, flat, columns, out=target)
        start = stop
    return products


def _empty_outputs(padded: Sequence[Tensor], out: int) -> Tensor:
    return padded[0].new_empty(1, sum(each.shape[1] for each in padded), out)


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


def along_tokens(products: Sequence[tuple[HeldFactors, nn.Module, Tensor]]) -> Tensor | None:
    """Layers' products of one row, each of its own tokens, in one tensor (1, tokens of all, out), with what is held.

    None where they cannot be written there by themselves.
    """
    wides = [(x, _widened_now(base), held.down) for held, base, x in products if held.gain is None]
    found = [(x, wide, down) for x, wide, down in wides if wide is not None and down is not None]
    return products_with_columns(found) if len(found) == len(products) else None


def widened(base: nn.Module, parts: Sequence[LayerRows], rank: int) -> nn.Module:
    """The layer with room for the LoRAs of one row beside its weights, where these are plain ones."""
    if type(base) is nn.Linear:
        return WidenedLinear(base, parts, rank)
    if isinstance(base, TwoPathLinear) and type(base.exact) is nn.Linear:
        base.exact = WidenedLinear(base.exact, parts, rank)
    return base


def _widened_now(base: nn.Module) -> WidenedLinear | None:
    now = base.exact_now() if isinstance(base, TwoPathLinear) else base
    return now if isinstance(now, WidenedLinear) else None
