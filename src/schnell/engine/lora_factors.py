"""The factors of LoRAs: as steps multiply with them, how many are made ready, and where they go beside weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from schnell.engine.slot_routing import COMPACT_RANK, MAX_ADAPTERS_PER_ROW, SlotRouting
from schnell.engine.weight_names import LayerRows

#: Ranks (of all LoRAs of all rows of a batch) up to which a layer takes them as further columns: a part's columns
#: multiply zeros for the other parts, a row's for the other rows, and above this the additional arithmetic costs more
#: than the passes that it saves.
_MOST_COLUMNS: Final = 64

#: Sides of matrices are multiples of this, which products of eight bits ask for.
SIDE: Final = 16

#: Beside the weights as further columns, or as further rows; or multiplied apart from them.
Place = Literal["columns", "rows", "apart"]


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


def plan_ranks(rank: int) -> tuple[int, ...]:
    """The ranks, summed over a row's LoRAs, that programs are made for if slots hold up to `rank`."""
    uses = range(1, MAX_ADAPTERS_PER_ROW + 1)
    return tuple(sorted({count * each for count in uses for each in (min(COMPACT_RANK, rank), rank)}))


def program_rank(routing: SlotRouting, planned: int) -> int:
    """How deep each LoRA of the current batch is in its program, for slots of a planned rank."""
    return min(COMPACT_RANK, planned) if routing.form == "compact" else planned


def is_held(routing: SlotRouting, planned: int) -> bool:
    """Whether the current batch's factors are made ready once for all of its steps: they are no more than one row's."""
    rows, uses = routing.slots.shape
    return routing.form != "any" and rows * uses * program_rank(routing, planned) <= max(plan_ranks(planned))


@dataclass(frozen=True, slots=True)
class Room:
    """Further columns and rows beside the weights [out, in] of a layer, whose outputs LoRAs see as so many parts."""

    in_features: int
    out_features: int
    parts: int
    columns: int
    rows: int

    @classmethod
    def of(cls, in_features: int, out_features: int, parts: int, rank: int) -> "Room":
        """For one row's LoRAs in slots of this rank. Several rows share it, as far as it goes."""
        ranks = plan_ranks(rank)
        columns = [each for each in ranks if takes_columns(in_features, out_features, each)]
        rows = [each for each in ranks if each not in columns]
        widths = [_whole_sides(parts * max(each, default=0)) for each in (columns, rows)]
        return cls(in_features, out_features, parts, *widths)

    def place(self, rank: int) -> Place:
        """Where LoRAs of this rank go: that of all LoRAs of all rows."""
        if takes_columns(self.in_features, self.out_features, rank) and self.parts * rank <= self.columns:
            return "columns"
        return "rows" if self.parts * rank <= self.rows else "apart"

    @property
    def numbers(self) -> int:
        """How many more numbers the layer holds than its weights."""
        whole = (self.out_features + self.rows) * (self.in_features + self.columns)
        return whole - self.out_features * self.in_features


def takes_columns(in_features: int, out_features: int, rank: int) -> bool:
    """Whether LoRAs of this rank are further columns of such a layer's weights, or further rows."""
    # columns read the inputs once more; rows write and read the outputs once more
    return in_features < out_features and rank <= _MOST_COLUMNS


def _whole_sides(count: int) -> int:
    return -(-count // SIDE) * SIDE
