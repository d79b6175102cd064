"""A float8 or int8 layer with room for LoRAs beside its codes: they are rounded as the weights and the inputs are.

As further rows, ways down have scales of their own, as every row of weights has. As further columns they share the
scales of what they lie beside, an output's and a token's, so what is in them is brought there by a factor a column,
which the way down is multiplied with and the way up divided by. What rounding adds to an output's error is then as much
as so many columns of the weights themselves add: 16 of 3,072.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from schnell.engine.lora_factors import low_rank_sum, own_of_each_row
from schnell.engine.lora_room import SIDE, Room
from schnell.engine.quantized import QuantizedLinear
from schnell.engine.rounded_products import RoundedArithmetic
from schnell.engine.weight_names import LayerRows
from schnell.engine.widened_linear import outputs_of_parts

#: Rounding may make an input and a factor larger, each by a sixteenth.
_ROUNDED_UP: Final = 1.13
#: Of e4m3's range, so much leaves inputs their three digits down to a thousandth of a token's largest.
_MOST_HEADROOM: Final = 512
#: So that a column of zeros does not divide by zero.
_LEAST: Final = 1e-12


class WidenedQuantizedLinear(nn.Module):
    """A `QuantizedLinear` that rounds its inputs, over the same codes, with room for a batch's LoRAs beside them.

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
            if self._arithmetic.has_exponents:
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
        widened, scales = self._arithmetic.with_columns(codes, scales, hidden)
        return self._multiply(widened, scales, self.out_features, x.dtype).view(*x.shape[:-1], self.out_features)


def _zeros_for_other_rows(hidden: Tensor, rows: int) -> Tensor:
    """(rows * tokens, rows * columns): what each row's tokens made of the ways down of other rows becomes zeros."""
    own = torch.eye(rows, dtype=hidden.dtype, device=hidden.device)
    by_rows = hidden.view(rows, len(hidden) // rows, rows, hidden.shape[1] // rows)
    return (by_rows * own[:, None, :, None]).view_as(hidden)
