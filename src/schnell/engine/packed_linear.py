"""Linear layers whose weights lie in memory as a CPU's bfloat16 product reads them.

torch hands each product to oneDNN with the weights as a matrix, which oneDNN writes anew in blocks of its own before
it multiplies, and it copies the bias over the whole output first. Beside a small model's few hundred tokens both take
a tenth to a fifth of the product. Here the blocks are written once, and the bias is added where the sums are rounded:
the same sums, to the last bit (`tests/engine/test_packed_linear.py`).

Source: oneDNN's "Memory format propagation", https://uxlfoundation.github.io/oneDNN/page_memory_format_propagation_cpp.html.
"""

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.flux_kernels import is_functional
from schnell.engine.slot_linear import SlotLinear

#: Weights of a layer up to which a second form of them is kept: 2 MiB. Beside the thousands of tokens of larger models
#: writing the blocks takes next to nothing, and a second form would be as much memory as the model.
_LARGEST_PACKED: Final = 1 << 20
#: Vectors that the form is chosen for; others are multiplied in the same one.
_VECTORS: Final = 768


class PackedLinear(nn.Linear):
    """A linear layer with the parameters of another, which must not change any more."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        # no buffer: no state dict and no `.to` knows this form
        self._blocks: Any = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _VECTORS)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if is_functional():
            return F.linear(x, self.weight, self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._blocks, self.bias, "none", [], "")
        return product


def pack_layers(layers: Iterable[SlotLinear]) -> None:
    """Give those of these layers that gain by it packed weights: small ones in bfloat16 on a CPU."""
    for layer in layers:
        if gains_by_packing(layer.base):
            layer.base = PackedLinear(layer.base)


def gains_by_packing(layer: nn.Module) -> bool:
    """Whether a layer's products are oneDNN's, and so short that the form of its weights matters."""
    # torch's types leave the question out
    if type(layer) is not nn.Linear or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    # without the instructions, torch multiplies bfloat16 by other means, and refuses these
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.numel() <= _LARGEST_PACKED
