"""Linear layers with room for LoRAs beside their weights, and the operators by which a program writes into it.

At 1024x1024 a LoRA costs what it reads and writes. Added to a layer's outputs it reads the inputs once more for the way
down, and the outputs are written and read once more. Beside the weights, one of the two is saved.

Rows of a batch share the weights, and so all of their LoRAs lie there, each row's behind those of the one before. A row
meets zeros in the places of the others (columns), or its products with them are not looked at (rows).

Beside float8 weights LoRAs are rounded as these are. As further rows, ways down have scales of their own, as every row
of weights has. As further columns they share the scales of what they lie beside, an output's and a token's, so what is
in them is brought there by a factor a column, which the way down is multiplied with and the way up divided by. What
rounding adds to an output's error is then as much as so many columns of the weights themselves add: 16 of 3,072. Only
numbers with exponents can share scales so: of int8's steps too few are left.
"""

from collections.abc import Sequence
from functools import cache
from itertools import count
from typing import Any, Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.lora_factors import SIDE, Room, low_rank_sum, own_of_each_row
from schnell.engine.quantized import QuantizedLinear
from schnell.engine.rounded_products import RoundedArithmetic
from schnell.engine.weight_names import LayerRows

#: Rounding may make an input and a factor larger, each by a sixteenth.
_ROUNDED_UP: Final = 1.13
#: Of e4m3's range, so much leaves inputs their three digits down to a thousandth of a token's largest.
_MOST_HEADROOM: Final = 512
#: So that a column of zeros does not divide by zero.
_LEAST: Final = 1e-12
_numbers: Final = count()
#: Layers by their numbers, for the operator that a program calls: it can be given tensors only.
_layers: Final[WeakValueDictionary[int, Any]] = WeakValueDictionary()


class WidenedLinear(nn.Module):
    """`nn.Linear` over the same numbers, with room beside the weights for the LoRAs of a batch.

    Where inputs are narrower than what comes out, they are further columns: [x|h]·[W|B]ᵀ in place of x·Wᵀ + h·Bᵀ. Where
    they are not, further rows give the way down with the layer's own product: x·[W;A]ᵀ. Both are written when a batch's
    LoRAs are others than the last one's, so switching is still an index.
    """

    wide: Tensor
    own: Tensor
    long_bias: Tensor | None

    def __init__(self, base: nn.Linear, parts: Sequence[LayerRows], rank: int) -> None:
        super().__init__()
        define_operators()
        self.in_features, self.out_features, self.bias = base.in_features, base.out_features, base.bias
        self.room = room = Room.of(base.in_features, base.out_features, len(parts), rank)
        wide = base.weight.new_zeros(base.out_features + room.rows, base.in_features + room.columns)
        wide[: base.out_features, : base.in_features].copy_(base.weight)
        self.register_buffer("wide", wide, persistent=False)
        self.register_buffer("own", outputs_of_parts(wide, parts), persistent=False)
        padded = None if base.bias is None else torch.cat([base.bias.detach(), wide.new_zeros(room.rows)])
        self.register_buffer("long_bias", padded, persistent=False)

    def full_weight(self) -> Tensor:
        """The layer's own matrix [out, in], a view."""
        return self.wide[: self.out_features, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), without LoRAs."""
        return F.linear(x, self.full_weight(), self.bias)

    def hold(self, down: Tensor, up: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Write a batch's LoRAs beside the weights: `down` [rows, parts * rank, in], `up` [rows, rank, out], scaled.

        Gives the two, or None for one that is beside the weights from now on.
        """
        place = self.room.place(up.shape[0] * up.shape[1])
        if place == "columns":
            written = self.wide[: self.out_features, self.in_features : self.in_features + down[..., 0].numel()]
            write_columns(written, up, self.own)
            return down, None
        if place == "rows":
            all_down = down.flatten(0, 1)
            self.wide[self.out_features : self.out_features + len(all_down), : self.in_features].copy_(all_down)
            return None, up
        return down, up

    def with_held(self, x: Tensor, down: Tensor | None, up: Tensor | None, parts: Sequence[LayerRows]) -> Tensor:
        """(rows, tokens, in) to (rows, tokens, out), with the LoRAs that `hold` wrote, and what it gave."""
        if up is None:
            assert down is not None  # noqa: S101 - for the type checker: at most one of the two is beside the weights
            return products_with_columns([(x, self, down)])
        if down is not None:
            apart = low_rank_sum(torch.bmm(x, down.transpose(1, 2)), up, parts)
            return self.forward(x) + apart
        out, rows = self.out_features, len(up)
        stop = out + rows * len(parts) * up.shape[1]
        bias = None if self.long_bias is None else self.long_bias[:stop]
        both = F.linear(x, self.wide[:stop, : self.in_features], bias)
        return both[..., :out] + low_rank_sum(own_of_each_row(both[..., out:], rows), up, parts)


class WidenedQuantizedLinear(nn.Module):
    """A `QuantizedLinear` in float8, over the same codes, with room for a batch's LoRAs beside them.

    See `WidenedLinear`, which is the same over plain weights.
    """

    codes: Tensor
    scales: Tensor
    down_scales: Tensor | None
    headroom: Tensor | None
    own: Tensor
    long_bias: Tensor | None

    def __init__(
        self, base: QuantizedLinear, arithmetic: RoundedArithmetic, parts: Sequence[LayerRows], rank: int
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = base.in_features, base.out_features, base.bias
        self.dtype, self._arithmetic = base.dtype, arithmetic
        self.room = room = Room.of(base.in_features, base.out_features, len(parts), rank)
        codes = base.codes.new_zeros(base.out_features + room.rows, base.in_features + room.columns)
        codes[: base.out_features, : base.in_features].copy_(base.codes)
        scales = torch.cat([base.scales, base.scales.new_zeros(room.rows, 1)])
        padded = None if base.bias is None else torch.cat([base.bias.detach(), base.bias.new_zeros(room.rows)])
        own = outputs_of_parts(base.scales, parts)
        for name, tensor in (("codes", codes), ("scales", scales), ("long_bias", padded), ("own", own)):
            self.register_buffer(name, tensor, persistent=False)
        for name in ("down_scales", "headroom"):
            self.register_buffer(name, None, persistent=False)

    def full_weight(self) -> Tensor:
        """See `QuantizedLinear.full_weight`."""
        out = self.out_features
        return (self.codes[:out, : self.in_features].float() * self.scales[:out]).to(self.dtype)

    @property
    def nbytes(self) -> int:
        """The bytes of codes and scales, the room for LoRAs included."""
        return self.codes.nbytes + self.scales.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the dtype of `x`, without LoRAs."""
        codes, scales = self._arithmetic.round(x.reshape(-1, self.in_features))
        return self._multiply(codes, scales, self.out_features, x.dtype).view(*x.shape[:-1], self.out_features)

    def _multiply(self, codes: Tensor, scales: Tensor, stop: int, dtype: torch.dtype) -> Tensor:
        """Codes (tokens, in and more) times as many columns of the first `stop` rows, plus the bias."""
        bias = None if self.long_bias is None else self.long_bias[:stop]
        weights = self.codes[:stop, : codes.shape[-1]]
        return self._arithmetic.multiply(codes, scales, weights, self.scales[:stop], bias, dtype)

    def hold(self, down: Tensor, up: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """See `WidenedLinear.hold`."""
        # the same rule as that of the layer's own sides (`QuantizedLinear.fits`)
        place = "apart" if down[..., 0].numel() % SIDE else self.room.place(up.shape[0] * up.shape[1])
        if place == "apart":
            return down, up
        if place == "columns":
            measured = self._write_columns(down, up).flatten(0, 1)
            codes, self.down_scales = self._arithmetic.round(measured)
            # no input is larger than its token's largest, so this is the most that can come of the way down
            self.headroom = (measured.abs().sum(-1).amax() * _ROUNDED_UP).clamp(1, _MOST_HEADROOM)
            return codes, None
        codes, scales = self._arithmetic.round(down.flatten(0, 1))
        rows = slice(self.out_features, self.out_features + len(codes))
        self.codes[rows, : self.in_features].copy_(codes)
        self.scales[rows].copy_(scales)
        return None, up

    def _write_columns(self, down: Tensor, up: Tensor) -> Tensor:
        """Gives the way down in the columns' measures."""
        rows, _, out = up.shape
        # (out, rows, parts, rank): what is not a part's own is zeros
        measured = (up.float().permute(2, 0, 1) / self.scales[:out, :, None])[:, :, None] * self.own[:, None, :, None]
        # as large as codes can be: what comes of the way down is then as small as can be, and leaves a token's scale
        # to its inputs
        factors = (measured.abs().amax(0) / self._arithmetic.largest).clamp_min(_LEAST)
        columns = self._arithmetic.to_codes(measured / factors).flatten(1)
        self.codes[:out, self.in_features : self.in_features + columns.shape[1]].copy_(columns)
        return down.float() * factors.view(rows, -1, 1)

    def with_held(self, x: Tensor, down: Tensor | None, up: Tensor | None, parts: Sequence[LayerRows]) -> Tensor:
        """See `WidenedLinear.with_held`."""
        if down is not None and up is not None:
            return self.forward(x) + low_rank_sum(torch.bmm(x, down.transpose(1, 2)), up, parts)
        if up is None:
            assert down is not None  # noqa: S101 - for the type checker: at most one of the two is beside the weights
            return self._with_columns(x, down)
        codes, scales = self._arithmetic.round(x.flatten(0, 1))
        stop = self.out_features + len(up) * len(parts) * up.shape[1]
        both = self._multiply(codes, scales, stop, x.dtype).view(*x.shape[:-1], stop)
        low = low_rank_sum(own_of_each_row(both[..., self.out_features :], len(up)), up, parts)
        return both[..., : self.out_features] + low

    def _with_columns(self, x: Tensor, down: Tensor) -> Tensor:
        assert self.down_scales is not None  # noqa: S101 - for the type checker: written with the columns
        codes, scales = self._arithmetic.round(x.flatten(0, 1), self.headroom)
        # of the codes, so that nothing but them is ever written: half the bytes of the inputs themselves
        hidden = self._arithmetic.multiply(codes, scales, down, self.down_scales, None, x.dtype)
        if len(x) > 1:
            hidden = _zeros_for_other_rows(hidden, len(x))
        widened = self._arithmetic.with_columns(codes, scales, hidden)
        return self._multiply(widened, scales, self.out_features, x.dtype).view(*x.shape[:-1], self.out_features)


def _zeros_for_other_rows(hidden: Tensor, rows: int) -> Tensor:
    """(rows * tokens, rows * columns): what each row's tokens made of the ways down of other rows becomes zeros."""
    own = torch.eye(rows, dtype=hidden.dtype, device=hidden.device)
    by_rows = hidden.view(rows, len(hidden) // rows, rows, hidden.shape[1] // rows)
    return (by_rows * own[:, None, :, None]).view_as(hidden)


def outputs_of_parts(like: Tensor, parts: Sequence[LayerRows]) -> Tensor:
    """Which outputs are whose, [out, parts] of ones and zeros: each part's see the columns of that part alone."""
    own = like.new_zeros(parts[-1].stop, len(parts))
    for index, part in enumerate(parts):
        own[part.start : part.stop, index] = 1
    return own


def write_columns(target: Tensor, up: Tensor, own: Tensor) -> None:
    """Write `up` [rows, rank, out] into columns [out, rows * parts * rank], each part's into those of its own."""
    rows, rank, out = up.shape
    # what is not a part's own is zeros: parts lie elsewhere when LoRAs of another rank come
    torch.mul(up.permute(2, 0, 1)[:, :, None], own[:, None, :, None], out=target.view(out, rows, -1, rank))


def products_with_columns(products: Sequence[tuple[Tensor, WidenedLinear, Tensor]]) -> Tensor:
    """Layers' products with the LoRAs that are columns beside the weights; of several layers for one row only.

    Each over its own tokens (rows, tokens, in), with its way down [rows, parts * rank, in]; gives (rows, tokens of all,
    out).
    """
    padded = []
    for x, _, down in products:
        room = torch.ops.schnell.room_for_columns(down, x.shape[-2])
        # in this form the compiler lets whatever pass makes the inputs write them here
        room.as_strided((x.shape[0] * x.shape[1], x.shape[2]), room.stride()[1:]).copy_(x.flatten(0, 1))
        padded.append(room)
    layers, downs = [layer for _, layer, _ in products], [down for *_, down in products]
    wides, biases = [layer.wide for layer in layers], [layer.bias for layer in layers]
    joined: Tensor = torch.ops.schnell.products_with_columns(padded, downs, wides, biases, layers[0].out_features)
    return joined


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
    rows, columns, inputs = down.shape
    return down.new_empty(rows, tokens, inputs + rows * columns)


def _products_with_columns(
    padded: list[Tensor], down: list[Tensor], wide: list[Tensor], bias: list[Tensor | None], out: int
) -> Tensor:
    products, start = _empty_outputs(padded, out), 0
    for room, factors, weights, added in zip(padded, down, wide, bias, strict=True):
        _write_ways_down(room, factors)
        stop = start + room.shape[1]
        # several layers' products are asked for of one row only, so this is always a view
        flat, target = room.flatten(0, 1), products[:, start:stop].view(-1, out)
        columns = weights[:out, : flat.shape[1]].T
        if added is None:
            torch.mm(flat, columns, out=target)
        else:
            torch.addmm(added, flat, columns, out=target)
        start = stop
    return products


def _write_ways_down(room: Tensor, down: Tensor) -> None:
    """Beside each row's inputs, what its own way down makes of them, and zeros in the places of the other rows'."""
    rows, _, inputs = down.shape
    if rows == 1:
        torch.mm(room[0, :, :inputs], down[0].T, out=room[0, :, inputs:])
        return
    room[..., inputs:].zero_()
    own = own_of_each_row(room[..., inputs:], rows)
    torch.bmm(room[..., :inputs], down.transpose(1, 2), out=own)


def _empty_outputs(padded: Sequence[Tensor], out: int) -> Tensor:
    return padded[0].new_empty(len(padded[0]), sum(each.shape[1] for each in padded), out)


def _add_side_paths(x: Tensor, y: Tensor, number: Tensor) -> None:
    _layers[int(number)].add_to(x, y)
