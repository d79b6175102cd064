"""The factors of LoRAs as steps multiply with them: a LoKr's, and those of a batch's rows in a layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schnell.engine.weight_names import LayerRows


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


def low_rank_sum(hidden: Tensor, up: Tensor, parts: Sequence[LayerRows]) -> Tensor:
    """`hidden` (rows, tokens, parts * rank) to (rows, tokens, out) by each part's columns of `up` [rows, rank, out]."""
    lows = torch.split(hidden, up.shape[1], dim=-1)
    sums = [torch.bmm(low, up[..., part.start : part.stop]) for low, part in zip(lows, parts, strict=True)]
    return sums[0] if len(sums) == 1 else torch.cat(sums, dim=-1)


def own_of_each_row(hidden: Tensor, rows: int) -> Tensor:
    """Of each row's products with the ways down of all rows (rows, tokens, rows * rank), its own, as a view."""
    if rows == 1:
        return hidden
    return hidden.view(*hidden.shape[:-1], rows, -1).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
