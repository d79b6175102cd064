"""Packed weights give the sums of torch's own product, to the last bit, and only where they are wanted."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from schnell.engine.flux_kernels import PackedLinear, gains_by_packing
from schnell.engine.loaded_model import pack_layers
from schnell.engine.slot_linear import SlotLinear, SlotPlan
from schnell.engine.slot_routing import SlotRouting

#: The layers of the embedded model: joined ones, feed-forward, modulation, and the ones at its ends.
SIZES = [(256, 1792), (1280, 256), (256, 1024), (1024, 256), (256, 768), (256, 1536), (64, 256), (256, 64)]


def plain_layer(
    in_features: int, out_features: int, *, bias: bool = True, dtype: torch.dtype = torch.bfloat16
) -> nn.Linear:
    return nn.Linear(in_features, out_features, bias=bias).to(dtype).requires_grad_(requires_grad=False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_packed_products_are_torchs_to_the_last_bit(size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(1)
    layer = plain_layer(*size, bias=bias)
    packed = PackedLinear(layer)
    # a modulation's rows, one picture and many, and numbers of tokens that are no multiple of anything
    for shape in ((1,), (3, 33), (8, 96), (2, 288), (16, 96)):
        x = torch.randn(*shape, size[0]).bfloat16()
        assert torch.equal(packed(x), layer(x))


def test_under_autograd_a_packed_layer_is_a_plain_one() -> None:
    layer = plain_layer(64, 32)
    x = torch.randn(5, 64).bfloat16().requires_grad_()
    product = PackedLinear(layer)(x)
    assert torch.equal(product, F.linear(x, layer.weight, layer.bias))
    product.sum().backward()
    assert x.grad is not None


def test_a_packed_layer_holds_the_parameters_of_the_layer_it_was_made_from() -> None:
    layer = plain_layer(64, 32)
    assert PackedLinear(layer).state_dict().keys() == layer.state_dict().keys()
    assert PackedLinear(layer).weight is layer.weight


def test_only_small_bfloat16_layers_are_packed() -> None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        pytest.skip("this torch has no oneDNN")
    assert gains_by_packing(plain_layer(64, 32))
    assert not gains_by_packing(plain_layer(64, 32, dtype=torch.float32))
    assert not gains_by_packing(plain_layer(2048, 1024))
    assert not gains_by_packing(nn.Linear(64, 32, device="meta").bfloat16())


def test_slots_stay_over_packed_layers() -> None:
    slots = SlotLinear(plain_layer(64, 32), SlotRouting(torch.device("cpu")), SlotPlan(dtype=torch.bfloat16))
    before = slots.full_weight()
    pack_layers([slots])
    assert isinstance(slots.base, PackedLinear)
    assert slots.full_weight() is before
