"""Linear layers with LoRAs beside them: many adapters in one batch, over base weights that are never changed.

A LoRA's delta is not merged into the weights. It runs as a *side path*, `y += scale * up(down(x))`, after the layer's
own product. Every layer holds stacks of low-rank factors, one pair a *slot*; each row of a batch names the slots it
uses and a scale for each. The form follows S-LoRA (Sheng et al., arXiv:2311.03285) and Punica (Chen et al.,
arXiv:2310.18547).

LoRA files name layers that may be parts of ours (`to_q` is a third of `qkv`). So a `SlotLinear` consists of parts,
each a range of its outputs; a `SlotPart` is what an adapter is written into. All parts read one input, so the way down
is one product over the stacked factors of all of them, and the way up one a part, added to its outputs in place.

The layer's own product is whatever module it is given: a plain linear layer, or one over quantized weights.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from schnell.engine.lora_factors import KroneckerFactors, RowFactors, is_held, low_rank_sum
from schnell.engine.slot_programs import HeldFactors, ProgramFactors, along_tokens, factors_for_programs, widened
from schnell.engine.slot_routing import KeptPerBatch, SlotRouting
from schnell.engine.weight_names import LayerRows, is_of_tokens
from schnell.engine.widened_linear import define_operators, number_of

#: A layer of up to so many weights keeps the factors that it gathered for a batch from step to step: there, gathering
#: takes as long as multiplying. At FLUX.1's own width it takes next to nothing beside the products, and the factors of
#: a batch of 4 rows with LoRAs of rank 16 would be 0.7 GB.
_LARGEST_KEEPING_LAYER: Final = 1 << 20
#: And it keeps no batch's factors of more bytes than this: with ranks and rows so large, the products take the time.
_LARGEST_KEPT_BYTES: Final = 2 << 20
#: Stacks that are made when they are needed are as deep as one of these, so that a LoRA of a slightly larger rank does
#: not make all of them anew.
_RANK_BUCKETS: Final = (8, 16, 32, 64, 128)
_CPU: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """How much memory a model's slots may take.

    `count` slots in every layer, slot 0 (no LoRA) included, each for ranks up to `rank`, in `dtype` on `device`.
    `reserved`: all of it is taken at once and kept, so that shapes never change, as a compiled network needs. Otherwise
    a layer takes memory while an adapter acts on it, as deep as its rank asks for, and gives it back. `widened`:
    blocks' layers have room for LoRAs beside their weights (`engine.widened_linear`), if these are plain or in float8.
    """

    count: int = 17
    rank: int = 128
    dtype: torch.dtype = torch.float32
    device: torch.device = _CPU
    reserved: bool = False
    widened: bool = False


class SlotLinear(nn.Module):
    """A linear layer `base`, plus the side paths of the slots that `routing`'s current batch uses.

    `base` has `in_features`, `out_features`, `bias` and a `forward` that returns a new tensor; `parts` are the ranges
    of outputs that adapters name, in order and without gaps.
    """

    down: Tensor | None
    up: Tensor | None
    gain: Tensor | None
    number: Tensor

    def __init__(self, base: Any, routing: SlotRouting, plan: SlotPlan, parts: Sequence[LayerRows] = ()) -> None:
        super().__init__()
        rows = tuple(parts) or (LayerRows("", 0, int(base.out_features)),)
        self.base = base
        self.in_features, self.out_features = int(base.in_features), int(base.out_features)
        self.routing, self.plan = routing, plan
        self.rows = rows
        self.parts = tuple(SlotPart(self, index, each) for index, each in enumerate(rows))
        self._ranks = [[0] * len(self.parts) for _ in range(plan.count)]
        # buffers, so that a compiled network takes them for its inputs; not persistent: a state dict is the base's
        self.register_buffer("down", None, persistent=False)  # [slots, parts, rank, in]
        self.register_buffer("up", None, persistent=False)  # [slots, rank, out]
        self.register_buffer("gain", None, persistent=False)  # [slots, out]: DoRA's g - 1
        self.kronecker: dict[tuple[int, int], KroneckerFactors] = {}  # by slot and part
        self._gains: set[tuple[int, int]] = set()  # the slots and parts with DoRA
        self._kept: KeptPerBatch[RowFactors | None] = KeptPerBatch()
        self.held = HeldFactors()
        if plan.reserved:
            self._reserve(plan.rank)
            self.gain = self._zeros(plan.count, self.out_features)
            define_operators()
            self.register_buffer("number", number_of(self), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, ..., in) to (rows, ..., out). Rows are the batch's, in the order that `routing` was given."""
        if self.routing.is_active and torch.compiler.is_compiling():
            return self.by_program(x)
        y: Tensor = self.base(x)
        if not self.routing.is_active:
            return y
        flat_x, flat_y = _with_tokens(x), _with_tokens(y)
        if self.down is None and self.gain is None and not self.kronecker:
            return y
        rows = self.routing.rows
        if rows is None:
            self.add_to(flat_x, flat_y)
            return y
        # rows without LoRA are left out: they are exactly the base layer's
        chosen = flat_y[rows]
        self.add_to(flat_x[rows], chosen)
        flat_y.index_copy_(0, rows, chosen)
        return y

    def add_to(self, x: Tensor, y: Tensor) -> None:
        """Add every side path of `x` (rows, tokens, in) to the base output `y` (rows, tokens, out), in place."""
        routing = self.routing
        if any(slot in routing.slots_used for slot, _ in self._gains):
            self._add_gain(y)
        factors = self._row_factors(routing)
        if factors is not None:
            factors.add_to(y, x)
        self._add_kronecker(x, y, routing)

    def by_program(self, x: Tensor) -> Tensor:
        """`forward` as a compiler follows it: of a batch, its form and its shapes alone decide what is done."""
        if self.routing.form == "any":
            y: Tensor = self.base(x)
            torch.ops.schnell.add_side_paths(_with_tokens(x), _with_tokens(y), self.number)
            return y
        if is_held(self.routing, self.plan.rank):
            whole = self.held(_with_tokens(x), self.base, self.rows).view(*x.shape[:-1], self.out_features)
            return self._scaled(whole, self.held.gain, x)
        down, up, gain = self.program_factors()
        product: Tensor = self.base(x)
        low = low_rank_sum(torch.bmm(_with_tokens(x), down.transpose(1, 2)), up, self.rows)
        return self._scaled(product + low.view_as(product), gain, x)

    @staticmethod
    def along_tokens(layers: Sequence["SlotLinear"], inputs: Sequence[Tensor]) -> Tensor:
        """One row's products of several layers, each of its own tokens (1, tokens, in): (1, tokens of all, out)."""
        pairs, routing = list(zip(layers, inputs, strict=True)), layers[0].routing
        if not routing.is_active:
            return torch.cat([layer.base(x[0]) for layer, x in pairs]).unsqueeze(0)
        # beside weights that hold LoRAs a product is an operator, which writes where it belongs by itself
        placed = along_tokens([(layer.held, layer.base, x) for layer, x in pairs]) if routing.form != "any" else None
        return torch.cat([layer(x) for layer, x in pairs], dim=1) if placed is None else placed

    def hold(self) -> None:
        """Make ready what programs multiply a batch with, before they run: its rows keep their LoRAs for all steps."""
        if is_held(self.routing, self.plan.rank):
            self.held.hold(self.routing, self.base, self.program_factors)

    def program_factors(self) -> ProgramFactors:
        """The current batch's factors as programs multiply with them."""
        assert self.down is not None  # noqa: S101 - for the type checker: a compiled network's stacks are reserved
        assert self.up is not None  # noqa: S101
        assert self.gain is not None  # noqa: S101
        return factors_for_programs(self.down, self.up, self.gain, self.routing)

    def _scaled(self, y: Tensor, gain: Tensor | None, x: Tensor) -> Tensor:
        if gain is None:
            return y
        flat, bias = _with_tokens(y), self.base.bias
        # g*(Wx + b + BAx/g) + (1 - g)*b: the next pass over the outputs does it on its way
        scaled = flat * gain if bias is None else torch.addcmul(bias * (1 - gain), flat, gain)
        return scaled.to(x.dtype).view(*x.shape[:-1], -1)

    def _add_gain(self, y: Tensor) -> None:
        """DoRA at scale s adds s*(g - 1) times the weights' own product; its low-rank part is stored as g*B."""
        assert self.gain is not None  # noqa: S101 - for the type checker: asked by the callers
        routing = self.routing
        gain = torch.einsum("ra,rao->ro", routing.scales.to(y.dtype), self.gain[routing.slots]).unsqueeze(1)
        bias = self.base.bias
        if bias is None:
            y.mul_(1 + gain)
        else:
            torch.addcmul(-bias * gain, y, 1 + gain, out=y)

    def _row_factors(self, routing: SlotRouting) -> RowFactors | None:
        """The batch's low-rank factors as deep as it needs them; kept while it comes again, where that pays."""
        if self.down is None or self.up is None:
            return None
        if self.in_features * self.out_features > _LARGEST_KEEPING_LAYER:
            return self._gather(routing)
        deepest = len(self.parts) * self.in_features + self.out_features
        if routing.slots.numel() * self.up.shape[1] * deepest * self.up.element_size() > _LARGEST_KEPT_BYTES:
            return self._gather(routing)
        return self._kept.get(routing, lambda: self._gather(routing))

    def _gather(self, routing: SlotRouting) -> RowFactors | None:
        assert self.down is not None  # noqa: S101 - for the type checker: asked by the caller
        assert self.up is not None  # noqa: S101
        # a stack is as deep as the largest rank in it; the batch at hand may need less of it, and not every part
        ranks = [max(self._ranks[slot][index] for slot in routing.slots_used) for index in range(len(self.parts))]
        used = [(part, rank) for part, rank in zip(self.parts, ranks, strict=True) if rank]
        if not used:
            return None
        if routing.shared is not None:
            # one LoRA for all rows: views of the slot's own factors
            slot, rows = routing.shared.slot, len(routing.slots)
            downs = [self.down[slot, part.index, :rank].expand(rows, -1, -1) for part, rank in used]
            ups = [self.up[slot, :rank, part.start : part.stop].expand(rows, -1, -1) for part, rank in used]
        else:
            # a row's LoRAs side by side are one LoRA whose rank is the sum of theirs
            slots, scales = routing.slots, routing.scales.to(self.up.dtype)[..., None, None]
            if len(set(ranks)) == 1:
                return self._gather_all(slots, scales, ranks[0])
            downs = [self.down[:, part.index, :rank][slots].flatten(1, 2) for part, rank in used]
            # indexing with a tensor copies, so `mul_` scales the batch's factors and leaves the stack alone
            ups = [self.up[:, :rank, part.start : part.stop][slots].mul_(scales).flatten(1, 2) for part, rank in used]
        return RowFactors(
            downs[0] if len(downs) == 1 else torch.cat(downs, dim=1),
            tuple((part.start, part.stop, up) for (part, _), up in zip(used, ups, strict=True)),
            routing.shared.scale if routing.shared is not None else 1.0,
        )

    def _gather_all(self, slots: Tensor, scales: Tensor, rank: int) -> RowFactors:
        """The same where all parts are equally deep: a few launches a layer instead of a few a part."""
        assert self.down is not None  # noqa: S101 - for the type checker: asked by the callers
        assert self.up is not None  # noqa: S101
        down = self.down[:, :, :rank][slots].transpose(1, 2).flatten(1, 3)  # (rows, parts, uses, rank, in)
        ups = self.up[:, :rank][slots].mul_(scales).flatten(1, 2)
        # a part's own columns behind each other: a product would copy them so, at every step
        return RowFactors(
            down, tuple((part.start, part.stop, ups[..., part.start : part.stop].contiguous()) for part in self.parts)
        )

    def _add_kronecker(self, x: Tensor, y: Tensor, routing: SlotRouting) -> None:
        for (slot, index), factors in sorted(self.kronecker.items()):
            if slot not in routing.slots_used:
                continue
            # (rows): a slot that a row names twice acts with the sum of its scales, one that it does not name with 0
            scale = ((routing.slots == slot) * routing.scales).sum(1).to(y.dtype)
            part = self.parts[index]
            y[..., part.start : part.stop] += part.turn(factors.apply(x), -1) * scale[:, None, None]

    def full_weight(self) -> Tensor:
        """The base layer's matrix [out, in] in the compute dtype."""
        weight: Tensor = self.base.weight if isinstance(self.base, nn.Linear) else self.base.full_weight()
        return weight

    def write_low_rank(self, slot: int, part: "SlotPart", down: Tensor, up: Tensor, gain: Tensor | None) -> None:
        """Copy factors into a slot, in place of what that part of it held: `down` [rank, in], `up` [out, rank].

        What could fail for want of memory comes first: then nothing has changed.
        """
        rank = down.shape[0]
        self._reserve(rank)
        gains = self._zeros(self.plan.count, self.out_features) if gain is not None and self.gain is None else self.gain
        assert self.down is not None  # noqa: S101 - for the type checker: reserved above
        assert self.up is not None  # noqa: S101
        self.gain = gains
        self.clear(slot, part)
        # noted before anything is written, so that what fails half way is cleared. Whole multiples of 8, which products
        # are fastest at
        self._ranks[slot][part.index] = min(-(-rank // 8) * 8, self.down.shape[2])
        self.routing.note(slot, rank, has_gains=gain is not None)
        # factors in pinned memory are copied while others' steps run; whoever reads the slot waits (`engine.uploads`)
        self.down[slot, part.index, :rank].copy_(down, non_blocking=True)
        self.up[slot, :rank, part.start : part.stop].copy_(part.turn(up, 0).T, non_blocking=True)
        if gain is not None and gains is not None:
            self._gains.add((slot, part.index))
            gains[slot, part.start : part.stop].copy_(part.turn(gain, 0), non_blocking=True)

    def write_kronecker(self, slot: int, part: "SlotPart", factors: KroneckerFactors) -> None:
        """Put a LoKr delta into a slot, in the place of what that part of it held before."""
        self.clear(slot, part)
        self.routing.note(slot, has_kronecker=True)
        left, right = factors.left.to(self.plan.device), factors.right.to(self.plan.device)
        self.kronecker[slot, part.index] = KroneckerFactors(left, right, factors.start, factors.stop)

    def clear(self, slot: int, part: "SlotPart") -> None:
        """Empty a part of a slot: rows that use it get the base layer alone there."""
        # what layers gathered from this slot would otherwise be used again for the next batch with the same slots
        self.routing.forget()
        self.kronecker.pop((slot, part.index), None)
        # asked first: a slot is emptied before it is filled, and zeros over zeros would be a thousand launches more
        if self._ranks[slot][part.index] and self.down is not None and self.up is not None:
            self.down[slot, part.index].zero_()
            self.up[slot, :, part.start : part.stop].zero_()
        self._ranks[slot][part.index] = 0
        if self.gain is not None and (slot, part.index) in self._gains:
            self.gain[slot, part.start : part.stop].zero_()
            self._gains.discard((slot, part.index))

    def give_back(self) -> None:
        """Give back what is deeper than the slots' adapters need; all of it where no slot has one."""
        if self.plan.reserved or self.down is None or self.up is None:
            return
        deepest = max(max(ranks) for ranks in self._ranks)
        if deepest == 0:
            self._kept = KeptPerBatch()
            self.down = self.up = self.gain = None
        elif (depth := self._depth(deepest)) < self.down.shape[2]:
            self.down, self.up = self.down[:, :, :depth].clone(), self.up[:, :depth].clone()

    @property
    def slot_bytes(self) -> int:
        """What the stacks take now."""
        return sum(stack.nbytes for stack in (self.down, self.up, self.gain) if stack is not None)

    def _reserve(self, rank: int) -> None:
        """Make the stacks deep enough; whole or not at all."""
        depth = self.plan.rank if self.plan.reserved else self._depth(rank)
        if self.down is not None and self.down.shape[2] >= depth:
            return
        down = self._zeros(self.plan.count, len(self.parts), depth, self.in_features)
        up = self._zeros(self.plan.count, depth, self.out_features)
        if self.down is not None and self.up is not None:
            down[:, :, : self.down.shape[2]].copy_(self.down)
            up[:, : self.up.shape[1]].copy_(self.up)
        # both or neither: a layer whose two stacks differed in depth would fail at every step from then on
        self.down, self.up = down, up

    def _depth(self, rank: int) -> int:
        if rank > self.plan.rank:
            raise ValueError(f"rank {rank} is above the {self.plan.rank} that slots are planned for")
        return min(next(bucket for bucket in (*_RANK_BUCKETS, rank) if rank <= bucket), self.plan.rank)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.plan.dtype, device=self.plan.device)


class SlotPart:
    """The outputs of a layer that adapters have one name for; what an adapter does to them is written here."""

    def __init__(self, layer: SlotLinear, index: int, rows: LayerRows) -> None:
        self.layer, self.index, self.name = layer, index, rows.module
        self.start, self.stop, self._turned = rows.start, rows.stop, rows.turned
        self.in_features, self.out_features = layer.in_features, rows.stop - rows.start

    def turn(self, tensor: Tensor, dim: int) -> Tensor:
        """From the adapter's order of outputs to the layer's, or back: for some layers the halves change places."""
        return tensor.roll(self.out_features // 2, dim) if self._turned else tensor

    def weight(self) -> Tensor:
        """The rows [out, in] of the layer's own matrix, in the adapter's order."""
        return self.turn(self.layer.full_weight()[self.start : self.stop], 0)

    def write_low_rank(self, slot: int, down: Tensor, up: Tensor, gain: Tensor | None = None) -> None:
        """Copy `down` [rank, in] and `up` [out, rank] into a slot, and DoRA's `gain` [out] if there is one.

        Raises:
            ValueError: the rank is above the plan's.
        """
        self.layer.write_low_rank(slot, self, down, up, gain)

    def write_kronecker(self, slot: int, factors: KroneckerFactors) -> None:
        """Put a LoKr delta into a slot."""
        self.layer.write_kronecker(slot, self, factors)

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self.layer.clear(slot, self)


def _with_tokens(x: Tensor) -> Tensor:
    """(rows, channels) or (rows, ..., tokens, channels) as (rows, tokens, channels)."""
    return x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)


def install_slots(
    network: nn.Module,
    routing: SlotRouting,
    plan: SlotPlan,
    rows_of: Callable[[str, int], Sequence[LayerRows]] | None = None,
) -> dict[str, SlotPart]:
    """Put a `SlotLinear` over every linear layer of a network; gives their parts by the names that adapters use.

    `rows_of` a layer's path and outputs are its parts; without it every layer is one part with its own path for a name.
    """
    installed: dict[str, SlotPart] = {}
    inside = "no layer yet."
    for path, module in list(network.named_modules()):
        # a layer in two arithmetics has layers within: the slots belong over all of it
        if (type(module) is nn.Linear or hasattr(module, "full_weight")) and not path.startswith(inside):
            inside = f"{path}."
            parts = tuple(rows_of(path, module.out_features)) if rows_of else (LayerRows(path, 0, module.out_features),)
            base = widened(module, parts, plan.rank) if plan.widened and is_of_tokens(path) else module
            layer = SlotLinear(base, routing, plan, parts)
            parent, _, name = path.rpartition(".")
            network.get_submodule(parent).register_module(name, layer)
            installed |= {rows.module: part for rows, part in zip(parts, layer.parts, strict=True)}
    return installed


def slot_layers(parts: Iterable[SlotPart]) -> list[SlotLinear]:
    """The layers that these parts belong to, each once."""
    return list({id(part.layer): part.layer for part in parts}.values())


def slot_parts(network: nn.Module) -> dict[str, SlotPart]:
    """The parts of all layers of a network that has slots, by the names that adapters use."""
    layers = [module for module in network.modules() if isinstance(module, SlotLinear)]
    return {part.name: part for layer in layers for part in layer.parts}
