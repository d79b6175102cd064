"""A linear layer whose weights have room for a LoRA as further columns: [x|h]·[W|B]ᵀ in place of x·Wᵀ + h·Bᵀ.

Why: added to a layer's outputs, a LoRA reads and writes all of them once more; at 1024x1024 that is most of what it
costs. As further columns of the inputs and of the weights it is part of the one product. The columns are written anew
at every step, a thousandth of the weights, so switching is still an index. For one row, since all rows of a product
share its weights.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WidenedLinear(nn.Module):
    """`nn.Linear` over the same numbers, with `columns` more columns of weights, which are nobody's until written."""

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
