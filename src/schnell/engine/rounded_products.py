"""Products of numbers that are rounded to eight bits, with a float32 scale for every row of either side.

On a card they run on its fast units; on a CPU the same numbers are multiplied by plain torch, so that a test there says
what a card draws.

Sources: Micikevicius et al., "FP8 Formats for Deep Learning" (arXiv:2209.05433); Dettmers et al., "LLM.int8()"
(arXiv:2208.07339) for scales by rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

_FLOAT8: Final = torch.float8_e4m3fn
#: So that a row of zeros does not divide by zero.
_LEAST_SCALE: Final = 1e-12
#: Tensor cores take rows by eights, and cuBLAS's int8 product no fewer than 17.
_LEAST_INT8_ROWS: Final = 32


@dataclass(frozen=True, slots=True)
class RoundedArithmetic:
    """How numbers are rounded and multiplied: `largest` is the largest code, `to_codes` rounds scaled float32 numbers.

    `has_exponents`: a scale that is larger than it needs to be, by a thousand even, costs next to no digits.
    `multiply` takes codes and scales of inputs (tokens, in), codes and scales of weights (out, in), a bias or None, and
    the dtype of what it gives, (tokens, out).
    """

    largest: float
    has_exponents: bool
    to_codes: Callable[[Tensor], Tensor]
    multiply: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, torch.dtype], Tensor]

    def round(self, x: Tensor, headroom: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`x` (rows, columns) as codes, and a float32 scale a row (rows, 1), `headroom` times what it needs to be."""
        scales = self.scales_of(x.abs().amax(-1, keepdim=True))
        if headroom is not None:
            scales = scales * headroom
        return self.to_codes(x.float() / scales), scales

    def with_columns(self, codes: Tensor, scales: Tensor, beside: Tensor) -> Tensor:
        """The codes of rows with those of further numbers `beside` them, in the scales that the rows have.

        What is too large for them is cut off; `headroom` sees to it that nothing is.
        """
        scaled = (beside.float() / scales).clamp(-self.largest, self.largest)
        return torch.cat([codes, self.to_codes(scaled)], dim=-1)

    def scales_of(self, largest: Tensor) -> Tensor:
        """The scales for rows whose largest numbers these are."""
        return (largest.float() / self.largest).clamp_min(_LEAST_SCALE)


def has_float8_units(device: torch.device) -> bool:
    """Whether a device's own product takes float8; else its numbers are multiplied in float32."""
    return device.type == "cuda"


def with_bias(sums: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Float32 sums and the bias, rounded once."""
    return (sums if bias is None else sums + bias.float()).to(dtype)


def _multiply_float8(  # noqa: PLR0913, PLR0917 - two matrices with their scales
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    if not has_float8_units(x.device):
        # float8's products are exact in float32, as they are on a card: only the order of the sums differs
        return with_bias(F.linear(x.float(), weight.float()) * x_scales * weight_scales.T, bias, dtype)
    by_rows: Any = F.ScalingType.RowWise
    return F.scaled_mm(
        x,
        weight.T,
        x_scales,
        by_rows,
        weight_scales.T,
        by_rows,
        bias=bias,
        output_dtype=dtype,
        # sums within a tile in fewer bits: an error far below float8's own rounding, at twice the rate on Hopper
        use_fast_accum=True,
    )


def _multiply_int8(  # noqa: PLR0913, PLR0917 - two matrices with their scales
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    missing = _LEAST_INT8_ROWS - len(x)
    codes = F.pad(x, (0, 0, 0, missing)) if missing > 0 else x
    sums = torch._int_mm(codes, weight.T)[: len(x)]
    return with_bias(sums.float() * x_scales * weight_scales.T, bias, dtype)


#: e4m3, as inference uses it.
FLOAT8: Final = RoundedArithmetic(
    largest=torch.finfo(_FLOAT8).max,
    has_exponents=True,
    to_codes=lambda scaled: scaled.to(_FLOAT8),
    multiply=_multiply_float8,
)
#: From -127 to 127; sums are exact.
INT8: Final = RoundedArithmetic(
    largest=127, has_exponents=False, to_codes=lambda scaled: scaled.round().to(torch.int8), multiply=_multiply_int8
)
