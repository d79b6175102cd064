"""Linear layers with a side path per LoRA: many adapters in one batch, over weights that are never touched.

Every layer holds stacks of low-rank factors, one pair a *slot*; each row of a batch names the slots it uses and a scale
for each. Slot indices and scales are tensors, so a batch of other LoRAs is the same program on other numbers. The form
follows the grouped side paths of S-LoRA (Sheng et al., arXiv:2311.03285) and Punica (Chen et al., arXiv:2310.18547).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.slot_routing import KeptPerBatch, SlotRouting


@dataclass(frozen=True, slots=True)
class KroneckerFactors:
    """A LoKr delta: rows `start` to `stop` of kron(left, right), with left [a, b] and right [c, d]."""

    left: Tensor
    right: Tensor
    start: int
    stop: int

    def apply(self, x: Tensor) -> Tensor:
        """kron(left, right) times every vector of `x` (..., b*d), without ever forming the product."""
        squares = x.reshape(*x.shape[:-1], self.left.shape[1], self.right.shape[1])
        product = torch.einsum("ab,...bd,cd->...ac", self.left, squares, self.right)
        return product.flatten(-2)[..., self.start : self.stop]


#: Up to this many weights a layer keeps what it gathered from step to step: there, gathering takes as long as
#: multiplying. At FLUX.1's own width it takes next to nothing, and a batch's factors would be gigabytes.
_SMALL: Final = 1 << 20
#: And no batch's factors that are more bytes than this: ranks and rows so large make the products what takes time.
_KEPT_BYTES: Final = 2 << 20
RANK_BUCKETS = (8, 16, 32, 64, 128)


def rank_bucket(rank: int) -> int:
    """The padded rank that an adapter of this rank is stored at."""
    return next(bucket for bucket in RANK_BUCKETS if rank <= bucket)


@dataclass(frozen=True, slots=True)
class RowFactors:
    """A batch's factors, row by row: `down` [rows, rank, in], and `up` [rows, rank, out]; `scale` is to be applied."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def add_to(self, y: Tensor, hidden: Tensor) -> Tensor:
        """Add to `y` (rows, tokens, out), in place, what comes up from `hidden` (rows, tokens, rank)."""
        return y.baddbmm_(hidden, self.up, alpha=self.scale)


class SlotLinear(nn.Module):
    """`nn.Linear` over the same parameters, plus the side paths of the slots that the batch uses."""

    down: Tensor | None
    up: Tensor | None
    gain: Tensor | None

    def __init__(self, base: nn.Linear, routing: SlotRouting, slot_count: int) -> None:
        super().__init__()
        self.weight = base.weight
        self.bias = base.bias
        self.in_features = base.in_features
        self.out_features = base.out_features
        self.routing = routing
        self._ranks = [0] * slot_count
        self.register_buffer("down", None, persistent=False)  # [slots, rank, in]
        self.register_buffer("up", None, persistent=False)  # [slots, rank, out]
        self.register_buffer("gain", None, persistent=False)  # [slots, out]: DoRA's g - 1
        self.kronecker: dict[int, KroneckerFactors] = {}
        self._kept: KeptPerBatch[RowFactors] = KeptPerBatch()

    def forward(self, x: Tensor) -> Tensor:
        """(rows, ..., in) to (rows, ..., out)."""
        return self._with_side_paths(x, F.linear(x, self.weight, self.bias))

    def add_side_paths(self, x: Tensor, y: Tensor) -> None:
        """Add what the batch's LoRAs do to `x` in place to `y`, this layer's own product, which may be strided."""
        result = self._with_side_paths(x, y)
        if result is not y and result.data_ptr() != y.data_ptr():
            y.copy_(result)

    @property
    def has_side_paths(self) -> bool:
        """Whether a LoRA may act on this layer in the batch at hand."""
        return bool(self.routing.rows_used) and (self.down is not None or bool(self.kronecker))

    def _with_side_paths(self, x: Tensor, y: Tensor) -> Tensor:
        return self._add_side_paths(x, y, self.routing) if self.has_side_paths else y

    def _add_side_paths(self, x: Tensor, y: Tensor, routing: SlotRouting) -> Tensor:
        flat_x, flat_y = (
            x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1),
            y.flatten(1, -2) if y.dim() > 2 else y.unsqueeze(1),
        )
        if routing.rows is None:
            return self._side_paths(flat_x, flat_y, routing).view_as(y)
        chosen = self._side_paths(flat_x[routing.rows], flat_y[routing.rows], routing)
        return flat_y.index_copy(0, routing.rows, chosen).view_as(y)

    def _side_paths(self, x: Tensor, y: Tensor, routing: SlotRouting) -> Tensor:
        """(rows, tokens, features): the base output plus every side path, for rows that use LoRAs."""
        result = y
        if self.gain is not None:
            gain = torch.einsum("ra,rao->ro", routing.scales.to(y.dtype), self.gain[routing.slots])
            result = result + (y if self.bias is None else y - self.bias) * gain.unsqueeze(1)
        if self.down is not None and self.up is not None:
            rank = self.down.shape[1] if routing.is_static else max(self._ranks[slot] for slot in routing.slots_used)
            if rank:
                factors = self._row_factors(routing, rank)
                # in place: `y` was made by the layer's own product just now, and a copy costs more than the side path
                result = factors.add_to(result, torch.bmm(x, factors.down.transpose(1, 2)))
        if self.kronecker:  # asked first: a compiled model without LoKr must not look at which slots are used
            result = self._add_kronecker(x, result, routing)
        return result

    def joint_factors(self) -> RowFactors | None:
        """The batch's factors where low-rank products of all rows are all that the LoRAs do here, and are kept."""
        routing = self.routing
        if self.down is None or self.gain is not None or self.kronecker or routing.rows is not None:
            return None
        rank = max(self._ranks[slot] for slot in routing.slots_used)
        return self._row_factors(routing, rank) if rank and self._keeps(routing) else None

    def _keeps(self, routing: SlotRouting) -> bool:
        if routing.is_static or self.in_features * self.out_features > _SMALL or self.up is None:
            return False
        bytes_a_rank = (self.in_features + self.out_features) * self.up.element_size()
        return routing.slots.numel() * self.up.shape[1] * bytes_a_rank <= _KEPT_BYTES

    def _row_factors(self, routing: SlotRouting, rank: int) -> RowFactors:
        if not self._keeps(routing):  # a compiled model must not look at the batch's number
            return self._gathered(routing, rank)
        return self._kept.get(routing, lambda: self._gathered(routing, rank))

    def _gathered(self, routing: SlotRouting, rank: int) -> RowFactors:
        assert self.down is not None  # noqa: S101 - for the type checker: asked by the callers
        assert self.up is not None  # noqa: S101
        down, up = self.down[:, :rank], self.up[:, :rank]
        if routing.shared is not None:
            # nothing to gather: every row sees the slot itself
            slot, rows = routing.shared.slot, routing.rows_used
            return RowFactors(
                down[slot].expand(rows, -1, -1), up[slot].expand(rows, -1, -1), scale=routing.shared.scale
            )
        # the factors of a row's LoRAs, one after the other, are those of one LoRA of their ranks' sum
        scales = routing.scales.to(self.up.dtype)[..., None, None]
        return RowFactors(down[routing.slots].flatten(1, 2), up[routing.slots].mul_(scales).flatten(1, 2))

    def _add_kronecker(self, x: Tensor, y: Tensor, routing: SlotRouting) -> Tensor:
        for slot in sorted(routing.slots_used & self.kronecker.keys()):
            scale = ((routing.slots == slot) * routing.scales).sum(1).to(y.dtype)
            y = y + self.kronecker[slot].apply(x) * scale[:, None, None]
        return y

    def write_low_rank(self, slot: int, down: Tensor, up: Tensor, gain: Tensor | None = None) -> None:
        """Put factors `down` [rank, in] and `up` [out, rank] into a slot, and DoRA's `gain` [out] if there is one."""
        self._reserve(rank_bucket(down.shape[0]))
        assert self.down is not None  # noqa: S101 - for the type checker: reserved above
        assert self.up is not None  # noqa: S101
        self.clear(slot)
        self.down[slot, : down.shape[0]].copy_(down)
        self.up[slot, : up.shape[1]].copy_(up.T)
        self._ranks[slot] = rank_bucket(down.shape[0])
        if gain is not None:
            if self.gain is None:
                self.gain = self.weight.new_zeros(len(self._ranks), self.out_features)
            self.gain[slot].copy_(gain)

    def write_kronecker(self, slot: int, factors: KroneckerFactors) -> None:
        """Put a LoKr delta into a slot."""
        self.clear(slot)
        self.kronecker[slot] = factors

    def clear(self, slot: int) -> None:
        """Make a slot act on this layer as no LoRA does."""
        self.routing.forget()
        self.kronecker.pop(slot, None)
        self._ranks[slot] = 0
        for stack in (self.down, self.up, self.gain):
            if stack is not None:
                stack[slot].zero_()

    def reserve(self, rank: int) -> None:
        """Make room for adapters of up to `rank` in every slot."""
        self._reserve(rank_bucket(rank))

    def _reserve(self, rank: int) -> None:
        if self.down is not None and self.down.shape[1] >= rank:
            return
        self.down = self._grown(self.down, rank, self.in_features)
        self.up = self._grown(self.up, rank, self.out_features)

    def _grown(self, stack: Tensor | None, rank: int, features: int) -> Tensor:
        grown = self.weight.new_zeros(len(self._ranks), rank, features)
        if stack is not None:
            grown[:, : stack.shape[1]].copy_(stack)
        return grown


def install_slots(network: nn.Module, routing: SlotRouting, slot_count: int) -> dict[str, SlotLinear]:
    """Replace every linear layer of a network by a `SlotLinear` over the same weights; gives them by module path."""
    installed: dict[str, SlotLinear] = {}
    for path, module in list(network.named_modules()):
        if type(module) is nn.Linear:
            installed[path] = SlotLinear(module, routing, slot_count)
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, installed[path])
    return installed


class StackedLinear:
    """Several layers over one input as one matrix product, each with its own side paths.

    The layers' parameters become views of one matrix: the same numbers under the same names, held once.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = tuple(layers)
        self._weight = _as_views_of_one([layer.weight for layer in self._layers])
        biases = [layer.bias for layer in self._layers if layer.bias is not None]
        self._bias = _as_views_of_one(biases) if len(biases) == len(self._layers) else None
        self._loose_biases = self._bias is None and bool(biases)
        self._downs: KeptPerBatch[Tensor] = KeptPerBatch()

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, tokens, in) to (rows, tokens, sum of all out), in the order of the layers."""
        if self._loose_biases:
            return torch.cat([layer(x) for layer in self._layers], dim=-1)
        y = F.linear(x, self._weight, self._bias)
        parts = torch.split(y, [layer.out_features for layer in self._layers], dim=-1)
        pairs = zip(self._layers, parts, strict=True)
        slotted = [(layer, part) for layer, part in pairs if isinstance(layer, SlotLinear) and layer.has_side_paths]
        factors = [layer.joint_factors() for layer, _ in slotted]
        known = [each for each in factors if each is not None]
        if known and len(known) == len(slotted) and x.dim() == 3:
            self._add_jointly(x, [part for _, part in slotted], known, slotted[0][0].routing)
        else:
            for layer, part in slotted:
                layer.add_side_paths(x, part)
        return y

    def _add_jointly(
        self, x: Tensor, parts: Sequence[Tensor], factors: Sequence[RowFactors], routing: SlotRouting
    ) -> None:
        """All layers' way down to their ranks is one product, kept together from step to step."""
        down = self._downs.get(routing, lambda: torch.cat([each.down for each in factors], dim=1))
        hidden = torch.bmm(x, down.transpose(1, 2))
        lower = torch.split(hidden, [each.down.shape[1] for each in factors], dim=-1)
        for part, each, low in zip(parts, factors, lower, strict=True):
            each.add_to(part, low)


def _as_views_of_one(parameters: Sequence[Tensor]) -> Tensor:
    whole = torch.cat([parameter.detach() for parameter in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = whole[start : start + len(parameter)]
        start += len(parameter)
    return whole
