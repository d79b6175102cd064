"""The modulation of all of FLUX's blocks as one product a kind of block, before the first block runs.

All blocks' modulation layers multiply the same vector of a row. One by one, each is a launch for a product that takes
as long as its weights are read, and two with a LoRA: together a sixth of a compiled step's launches. Joined, each kind
is one, and two with a LoRA. Weights are in memory once: the layers' own become views of the joined ones.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.flux import Flux
from schnell.engine.lora_factors import is_held, own_of_each_row, plan_ranks
from schnell.engine.slot_linear import SlotLinear


def joined_numbers(layers: int, in_features: int, rank: int) -> int:
    """How many more numbers so many joined layers hold than their weights, for slots of this rank."""
    return layers * max(plan_ranks(rank)) * in_features


class JoinedLayers(nn.Module):
    """Modulation layers of one size as one layer, with the LoRAs of a batch.

    Behind all layers' rows are those of their LoRAs' ways down, so that these come with the layers' own product, as in
    a `WidenedLinear`. The ways up are one product over all layers.
    """

    wide: Tensor
    bias: Tensor
    up: Tensor | None
    gain: Tensor | None
    added: Tensor

    def __init__(self, layers: Sequence[SlotLinear]) -> None:
        super().__init__()
        first = layers[0]
        self._layers, self._routing = list(layers), first.routing
        self._count, self._out = len(layers), first.out_features
        self._of: tuple[int, str] | None = None
        like = first.full_weight()
        rows = len(layers) * self._out + joined_numbers(len(layers), 1, first.plan.rank)
        wide, bias = like.new_zeros(rows, first.in_features), like.new_zeros(rows)
        for index, layer in enumerate(layers):
            place = slice(index * self._out, (index + 1) * self._out)
            bias[place].copy_(layer.base.bias)
            wide[place].copy_(layer.base.weight)
            # one after the other, so that what is joined is in memory twice for as short as can be
            layer.base.weight = nn.Parameter(wide[place], requires_grad=False)
        # a shift, a scale, a gate: scales act with their 1 added
        added = torch.tensor([0, 1, 0], dtype=wide.dtype, device=wide.device)[:, None, None]
        for name, tensor in (("wide", wide), ("bias", bias), ("added", added), ("up", None), ("gain", None)):
            self.register_buffer(name, tensor, persistent=False)

    def hold(self) -> None:
        """Make the LoRAs of the current batch ready for `forward`, once for as long as it stays."""
        of = (self._routing.route_number, self._routing.form)
        if of == self._of:
            return
        self._of = None  # what fails half way must not be taken for done
        with torch.inference_mode(mode=False), torch.no_grad():
            factors = [layer.program_factors() for layer in self._layers]
            # layer by layer, and within each row by row
            downs = torch.cat([down.flatten(0, 1) for down, _, _ in factors])
            start = self._count * self._out
            self.wide[start : start + len(downs)].copy_(downs)
            self.up = torch.stack([up for _, up, _ in factors])
            gains = [gain[:, 0] for _, _, gain in factors if gain is not None]
            self.gain = torch.stack(gains, dim=1) if gains else None
        self._of = of

    def forward(self, signal: Tensor) -> Tensor:
        """(rows, width) to (rows, layers, places, 3, 1, width): what `Modulation` hands out, for each layer."""
        own = self._count * self._out
        if self._routing.is_active:
            joined = self._with_held(signal, own)
        else:
            joined = F.linear(signal, self.wide[:own], self.bias[:own])
        return joined.view(len(signal), self._count, -1, 3, 1, signal.shape[-1]) + self.added

    def _with_held(self, signal: Tensor, own: int) -> Tensor:
        assert self.up is not None  # noqa: S101 - for the type checker: held before a program runs
        layers, rows, rank, out = self.up.shape
        stop = own + layers * rows * rank
        both = F.linear(signal, self.wide[:stop], self.bias[:stop])
        hidden = own_of_each_row(both[:, own:].view(rows, layers, rows * rank), rows).transpose(0, 1)
        low = torch.bmm(hidden.reshape(layers * rows, 1, rank), self.up.flatten(0, 1))
        joined = both[:, :own].view(rows, layers, out) + low.view(layers, rows, out).transpose(0, 1)
        if self.gain is not None:
            # g*(Wx + b + BAx/g) + (1 - g)*b
            bias = self.bias[:own].view(layers, out)
            joined = torch.addcmul(bias * (1 - self.gain), joined, self.gain).to(signal.dtype)
        return joined


class JoinedModulation:
    """`Flux.modulate` of a network whose modulation layers are plain ones with slots; for compiled blocks.

    `layers` are those of each sort of blocks, in order, with how many of them a block has; `compile_part` is what a
    part of it runs through, which is `torch.compile` with its backend.
    """

    def __init__(self, layers: Sequence[tuple[Sequence[SlotLinear], int]], compile_part: Any) -> None:
        first = layers[0][0][0]
        self._routing, self._planned = first.routing, first.plan.rank
        self._blocks = sum(len(each) // count for each, count in layers)
        self._parts = [(JoinedLayers(each), count) for each, count in layers]
        self._programs = [compile_part(part) for part, _ in self._parts]
        self.layers = {layer for each, _ in layers for layer in each}

    def __call__(self, signal: Tensor) -> Sequence[Tensor]:
        """Each block's modulation, or, for batches with too many LoRAs, what it makes it of itself."""
        active = self._routing.is_active
        if active and not is_held(self._routing, self._planned):
            return [signal] * self._blocks
        made: list[Tensor] = []
        for (part, count), program in zip(self._parts, self._programs, strict=True):
            if active:
                part.hold()
            vectors = program(signal)
            made += [each.flatten(1, 2) for each in vectors.split(count, dim=1)]
        return made


def join_modulation(network: Flux, compile_part: Any) -> JoinedModulation | None:
    """The network's modulation joined, unless it is quantized or waits elsewhere: then blocks make their own."""
    # a double block has the image's and the text's
    doubles = [lin for block in network.double_blocks for lin in _layers_of(block, "img_mod", "txt_mod")]
    singles = [lin for block in network.single_blocks for lin in _layers_of(block, "modulation")]
    if any(not isinstance(lin, SlotLinear) or type(lin.base) is not nn.Linear for lin in (*doubles, *singles)):
        return None
    sorts = [(lins, count) for lins, count in ((doubles, 2), (singles, 1)) if lins]
    return JoinedModulation(sorts, compile_part) if sorts else None


def _layers_of(block: nn.Module, *names: str) -> list[Any]:
    return [getattr(block, name).lin for name in names]
