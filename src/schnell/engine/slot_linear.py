"""Linear layers with LoRAs beside them: many adapters in one batch, over base weights that are never changed.

A LoRA's delta is not merged into the weights. It runs as a *side path*, `y += scale * up(down(x))`, after the layer's
own product. Every layer holds stacks of low-rank factors, one pair a *slot*; each row of a batch names the slots it
uses and a scale for each. Slot indices and scales are tensors, so a batch with other LoRAs is the same program on other
numbers. The form follows S-LoRA (Sheng et al., arXiv:2311.03285) and Punica (Chen et al., arXiv:2310.18547).

`SlotLinear` is one such layer, `StackedLinear` runs several layers over one input as one product, and `install_slots`
puts a `SlotLinear` in the place of every `nn.Linear` of a network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.slot_routing import KeptPerBatch, SlotRouting

#: A layer of up to so many weights keeps the factors that it gathered for a batch from step to step: there, gathering
#: takes as long as multiplying. At FLUX.1's own width it takes next to nothing beside the products, and the factors of
#: a batch of 4 rows with LoRAs of rank 16 would be 0.7 GB.
_LARGEST_KEEPING_LAYER: Final = 1 << 20
#: And it keeps no batch's factors of more bytes than this: with ranks and rows so large, the products take the time.
_LARGEST_KEPT_BYTES: Final = 2 << 20
#: Ranks are padded with zeros to one of these, so that adapters of different ranks share a stack. Conversion brings
#: every adapter to rank 128 or less (`adapters.decompose.MAX_RANK`), or refuses it.
_RANK_BUCKETS: Final = (8, 16, 32, 64, 128)


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
    """The low-rank factors of a batch's rows: `down` [rows, rank, in] and `up` [rows, rank, out].

    `scale` is still to be applied; 1 where the scales are multiplied into `up` already.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def add_to(self, y: Tensor, hidden: Tensor) -> Tensor:
        """Add the way up from `hidden` (rows, tokens, rank) to `y` (rows, tokens, out), in place; returns `y`."""
        return y.baddbmm_(hidden, self.up, alpha=self.scale)


class SlotLinear(nn.Module):
    """`nn.Linear` over the same parameters, plus the side paths of the slots that `routing`'s current batch uses.

    `slot_count` includes slot 0, which is no LoRA and stays all zeros. The stacks of factors are made when the first
    adapter is written, in the weight's dtype and on its device, and grow with the largest rank.
    """

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
        # buffers, so that `.to(device)` moves them; not persistent, so that a state dict holds the base weights alone
        self.register_buffer("down", None, persistent=False)  # [slots, rank, in]
        self.register_buffer("up", None, persistent=False)  # [slots, rank, out]
        self.register_buffer("gain", None, persistent=False)  # [slots, out]: DoRA's g - 1
        self.kronecker: dict[int, KroneckerFactors] = {}
        self._kept: KeptPerBatch[RowFactors] = KeptPerBatch()

    def forward(self, x: Tensor) -> Tensor:
        """(rows, ..., in) to (rows, ..., out). Rows are the batch's, in the order that `routing` was given."""
        return self._with_side_paths(x, F.linear(x, self.weight, self.bias))

    def add_side_paths(self, x: Tensor, y: Tensor) -> None:
        """Add the side paths of `x` (rows, ..., in) to `y` (rows, ..., out), this layer's own product, in place.

        `y` may be a strided view of a larger tensor.
        """
        result = self._with_side_paths(x, y)
        # low-rank products of all rows are added to `y` itself; DoRA, LoKr and a choice of rows make a new tensor
        if result is not y and result.data_ptr() != y.data_ptr():
            y.copy_(result)

    @property
    def has_side_paths(self) -> bool:
        """Whether a LoRA may act on this layer in the current batch."""
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
        """The base output `y` (rows, tokens, out) plus every side path of `x` (rows, tokens, in).

        `rows` are those that use LoRAs. Without DoRA the low-rank products are added to `y` in place.
        """
        result = y
        if self.gain is not None:
            # DoRA at scale s adds s*(g - 1) times the weights' own product, and its low-rank part is stored as g*B
            gain = torch.einsum("ra,rao->ro", routing.scales.to(y.dtype), self.gain[routing.slots])
            result = result + (y if self.bias is None else y - self.bias) * gain.unsqueeze(1)
        if self.down is not None and self.up is not None:
            # a stack is as deep as the largest rank ever written; the batch at hand may need less of it
            rank = self.down.shape[1] if routing.is_static else max(self._ranks[slot] for slot in routing.slots_used)
            if rank:
                factors = self._row_factors(routing, rank)
                # in place: `y` is the layer's own product, made just now, and a copy costs more than the side path
                result = factors.add_to(result, torch.bmm(x, factors.down.transpose(1, 2)))
        if self.kronecker:  # asked here: a compiled model would be compiled anew for every other `slots_used`
            result = self._add_kronecker(x, result, routing)
        return result

    def joint_factors(self) -> RowFactors | None:
        """The batch's factors if low-rank products of all rows are all that its LoRAs do here, and they are kept.

        None otherwise: the layer then has to add its side paths by itself.
        """
        routing = self.routing
        if self.down is None or self.gain is not None or self.kronecker or routing.rows is not None:
            return None
        rank = max(self._ranks[slot] for slot in routing.slots_used)
        return self._row_factors(routing, rank) if rank and self._keeps(routing) else None

    def _keeps(self, routing: SlotRouting) -> bool:
        # a compiled model would be compiled anew for every other route number, by which factors are kept
        if routing.is_static or self.in_features * self.out_features > _LARGEST_KEEPING_LAYER or self.up is None:
            return False
        bytes_a_rank = (self.in_features + self.out_features) * self.up.element_size()
        return routing.slots.numel() * self.up.shape[1] * bytes_a_rank <= _LARGEST_KEPT_BYTES

    def _row_factors(self, routing: SlotRouting, rank: int) -> RowFactors:
        if not self._keeps(routing):
            return self._gather(routing, rank)
        return self._kept.get(routing, lambda: self._gather(routing, rank))

    def _gather(self, routing: SlotRouting, rank: int) -> RowFactors:
        assert self.down is not None  # noqa: S101 - for the type checker: asked by the callers
        assert self.up is not None  # noqa: S101
        down, up = self.down[:, :rank], self.up[:, :rank]
        if routing.shared is not None:
            # one LoRA for all rows: views of the slot's own factors, nothing is copied
            slot, rows = routing.shared.slot, routing.rows_used
            return RowFactors(
                down[slot].expand(rows, -1, -1), up[slot].expand(rows, -1, -1), scale=routing.shared.scale
            )
        # a row's LoRAs side by side are one LoRA whose rank is the sum of theirs
        scales = routing.scales.to(self.up.dtype)[..., None, None]
        # indexing with a tensor copies, so `mul_` scales the batch's factors and leaves the stack alone
        return RowFactors(down[routing.slots].flatten(1, 2), up[routing.slots].mul_(scales).flatten(1, 2))

    def _add_kronecker(self, x: Tensor, y: Tensor, routing: SlotRouting) -> Tensor:
        for slot in sorted(routing.slots_used & self.kronecker.keys()):
            # (rows): a slot that a row names twice acts with the sum of its scales, one that it does not name with 0
            scale = ((routing.slots == slot) * routing.scales).sum(1).to(y.dtype)
            y = y + self.kronecker[slot].apply(x) * scale[:, None, None]
        return y

    def write_low_rank(self, slot: int, down: Tensor, up: Tensor, gain: Tensor | None = None) -> None:
        """Copy factors `down` [rank, in] and `up` [out, rank] into a slot, and DoRA's `gain` [out] if there is one.

        `rank` is at most 128. What the slot held before is gone.
        """
        rank = next(bucket for bucket in _RANK_BUCKETS if down.shape[0] <= bucket)
        self._reserve(rank)
        assert self.down is not None  # noqa: S101 - for the type checker: reserved above
        assert self.up is not None  # noqa: S101
        self.clear(slot)
        self.down[slot, : down.shape[0]].copy_(down)
        self.up[slot, : up.shape[1]].copy_(up.T)
        self._ranks[slot] = rank
        if gain is not None:
            if self.gain is None:
                self.gain = self.weight.new_zeros(len(self._ranks), self.out_features)
            self.gain[slot].copy_(gain)

    def write_kronecker(self, slot: int, factors: KroneckerFactors) -> None:
        """Put a LoKr delta into a slot, in the place of what it held before."""
        self.clear(slot)
        self.kronecker[slot] = factors

    def clear(self, slot: int) -> None:
        """Empty a slot: rows that use it get the base layer alone."""
        # what layers gathered from this slot would otherwise be used again for the next batch with the same slots
        self.routing.forget()
        self.kronecker.pop(slot, None)
        self._ranks[slot] = 0
        for stack in (self.down, self.up, self.gain):
            if stack is not None:
                stack[slot].zero_()

    def _reserve(self, rank: int) -> None:
        if self.down is not None and self.down.shape[1] >= rank:
            return
        # both or none: if there is no memory for the second, the layer must be what it was
        down, up = self._grown(self.down, rank, self.in_features), self._grown(self.up, rank, self.out_features)
        self.down, self.up = down, up

    def _grown(self, stack: Tensor | None, rank: int, features: int) -> Tensor:
        grown = self.weight.new_zeros(len(self._ranks), rank, features)
        if stack is not None:
            grown[:, : stack.shape[1]].copy_(stack)
        return grown


class StackedLinear:
    """Several layers over one input as one matrix product, each with its own side paths.

    The layers' weights and biases become views of one stacked tensor: the same numbers under the same names, in memory
    once. So each layer stays usable by itself, and a state dict is what it was.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = tuple(layers)
        self._weight = _as_views_of_one([layer.weight for layer in self._layers])
        biases = [layer.bias for layer in self._layers if layer.bias is not None]
        self._bias = _as_views_of_one(biases) if len(biases) == len(self._layers) else None
        # one product takes one bias or none; layers of which only some have a bias run one by one
        self._only_some_have_biases = self._bias is None and bool(biases)
        self._downs: KeptPerBatch[Tensor] = KeptPerBatch()

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, tokens, in) to (rows, tokens, sum of all out), in the order of the layers."""
        if self._only_some_have_biases:
            return torch.cat([layer(x) for layer in self._layers], dim=-1)
        y = F.linear(x, self._weight, self._bias)
        # `parts` are views of `y`: what the side paths add to a part in place is in `y` without another copy
        parts = torch.split(y, [layer.out_features for layer in self._layers], dim=-1)
        pairs = zip(self._layers, parts, strict=True)
        slotted = [(layer, part) for layer, part in pairs if isinstance(layer, SlotLinear) and layer.has_side_paths]
        factors = [layer.joint_factors() for layer, _ in slotted]
        known = [each for each in factors if each is not None]
        # one layer with DoRA or LoKr, or with factors too large to keep, sends all of them the ordinary way
        if known and len(known) == len(slotted) and x.dim() == 3:
            self._add_jointly(x, [part for _, part in slotted], known, slotted[0][0].routing)
        else:
            for layer, part in slotted:
                layer.add_side_paths(x, part)
        return y

    def _add_jointly(
        self, x: Tensor, parts: Sequence[Tensor], factors: Sequence[RowFactors], routing: SlotRouting
    ) -> None:
        """One product takes `x` down to the ranks of all layers; its stacked factors are kept from step to step."""
        down = self._downs.get(routing, lambda: torch.cat([each.down for each in factors], dim=1))
        hidden = torch.bmm(x, down.transpose(1, 2))
        lower = torch.split(hidden, [each.down.shape[1] for each in factors], dim=-1)
        for part, each, low in zip(parts, factors, lower, strict=True):
            each.add_to(part, low)


def _as_views_of_one(parameters: Sequence[Tensor]) -> Tensor:
    """Stack parameters [out, ...] along `out`, and let each be a view of the result from now on."""
    whole = torch.cat([parameter.detach() for parameter in parameters])
    start = 0
    for parameter in parameters:
        # the parameter object stays, so whoever holds it goes on seeing its values; only its memory is another
        parameter.data = whole[start : start + len(parameter)]
        start += len(parameter)
    return whole


def install_slots(network: nn.Module, routing: SlotRouting, slot_count: int) -> dict[str, SlotLinear]:
    """Replace every linear layer of a network by a `SlotLinear` over the same weights; gives them by module path."""
    installed: dict[str, SlotLinear] = {}
    for path, module in list(network.named_modules()):
        if type(module) is nn.Linear:
            installed[path] = SlotLinear(module, routing, slot_count)
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, installed[path])
    return installed
