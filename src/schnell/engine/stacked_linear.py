"""Linear layers that read the same input, multiplied as one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from schnell.engine.slot_linear import (RowFactors, SlotLinear)
from schnell.engine.slot_routing import (KeptPerBatch, SlotRouting)


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
