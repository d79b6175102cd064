"""Linear layers that read the same input, multiplied as one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from schnell.engine.slot_linear import SlotLinear


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

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, tokens, in) to (rows, tokens, sum of all out), in the order of the layers."""
        if self._loose_biases:
            return torch.cat([layer(x) for layer in self._layers], dim=-1)
        y = F.linear(x, self._weight, self._bias)
        start = 0
        for layer in self._layers:
            stop = start + layer.out_features
            if isinstance(layer, SlotLinear):
                layer.add_side_paths(x, y[..., start:stop])
            start = stop
        return y


def _as_views_of_one(parameters: Sequence[Tensor]) -> Tensor:
    whole = torch.cat([parameter.detach() for parameter in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = whole[start : start + len(parameter)]
        start += len(parameter)
    return whole
