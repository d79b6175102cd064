"""How much room for LoRAs a layer has beside its weights, and where in it those of a batch go."""

from dataclasses import dataclass
from typing import Final, Literal

from schnell.engine.slot_routing import COMPACT_RANK, MAX_ADAPTERS_PER_ROW, SlotRouting

#: Ranks (of all LoRAs of all rows of a batch) up to which a layer takes them as further columns: a part's columns
#: multiply zeros for the other parts, a row's for the other rows, and above this the additional arithmetic costs more
#: than the passes that it saves.
_MOST_COLUMNS: Final = 64

#: Sides of matrices are multiples of this, which products of eight bits ask for.
SIDE: Final = 16

#: Beside the weights as further columns, or as further rows; or multiplied apart from them.
Place = Literal["columns", "rows", "apart"]


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
