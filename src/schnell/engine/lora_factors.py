"""The factors of LoRAs as a step multiplies with them: a LoKr's, and those that a batch's rows have in one layer,
added to the outputs or as further columns of the weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class KroneckerFactors:
    """A LoKr delta [stop - start, b*d]: rows `start` to `stop` of kron(left, right), left [a, b] and right [c, d].

    Source: LyCORIS (Yeh et al., arXiv:2309.14859).
    """

    left: Tensor
    right: Tensor
    start: int
    stop: int

    def apply(self, x: Tensor) -> Tensor:
        """The delta times every vector of `x` (..., b*d), as (..., stop - start), without forming the delta."""
        squares = x.reshape(*x.shape[:-1], self.left.shape[1], self.right.shape[1])
        product = torch.einsum("ab,...bd,cd->...ac", self.left, squares, self.right)
        return product.flatten(-2)[..., self.start : self.stop]


@dataclass(frozen=True, slots=True)
class RowFactors:
    """The low-rank factors of a batch's rows, for all parts that a LoRA acts on.

    `down` is [rows, columns, in]. Each of `ups` is [rows, columns, out] for the layer's outputs `start` to `stop`, and
    its columns follow those of the one before. `scale` is still to be applied; 1 where it is multiplied into `ups`.
    """

    down: Tensor
    ups: tuple[tuple[int, int, Tensor], ...]
    scale: float = 1.0

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """Add the side paths of `x` (rows, tokens, in) to `y` (rows, tokens, out), in place."""
        hidden = torch.bmm(x, self.down.transpose(1, 2))
        column = 0
        for start, stop, up in self.ups:
            columns = up.shape[1]
            # in place: `y` is the layer's own product, made just now, and a copy costs more than the side path
            y[..., start:stop].baddbmm_(hidden[..., column : column + columns], up, alpha=self.scale)
            column += columns


class WidenedLinear(nn.Module):
    """`nn.Linear` over the same numbers, whose weights have room for a LoRA as `columns` more columns.

    [x|h]·[W|B]ᵀ in place of x·Wᵀ + h·Bᵀ: added to a layer's outputs, a LoRA reads and writes all of them once more, and
    at 1024x1024 that is most of what it costs. The columns are written anew at every step, a thousandth of the weights,
    so switching is still an index. For one row, since all rows of a product share its weights.
    """

    wide: Tensor

    def __init__(self, base: nn.Linear, columns: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = base.in_features, base.out_features, base.bias
        wide = base.weight.new_zeros(base.out_features, base.in_features + columns)
        wide[:, : base.in_features].copy_(base.weight)
        self.register_buffer("wide", wide, persistent=False)

    def full_weight(self) -> Tensor:
        """The layer's own matrix [out, in], a view."""
        return self.wide[:, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), without the further columns."""
        return F.linear(x, self.full_weight(), self.bias)

    def forward_with(self, x: Tensor, hidden: Tensor, columns: Tensor) -> Tensor:
        """The same plus `hidden` (..., n) times the transpose of `columns` [out, n], in one product."""
        stop = self.in_features + columns.shape[1]
        self.wide[:, self.in_features : stop].copy_(columns)
        return F.linear(torch.cat([x, hidden], dim=-1), self.wide[:, :stop], self.bias)
