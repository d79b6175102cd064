import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.quantized import (
    LAYERS,
    Int8Linear,
    Kind,
    PathChoice,
    QuantizedLinear,
    TwoPathLinear,
    quantize_linears,
    quantized_form,
    stored_bytes,
    to_int4,
    transformer_kinds,
    two_path_form,
)
from schnell.engine.rounded_products import FLOAT8, INT8

#: What each kind may lose of a random layer's product, as a share of its norm: about twice what it does lose.
LARGEST_ERROR: dict[Kind, float] = {"float8": 0.08, "int8": 0.02, "int8_weights": 0.01, "int4": 0.12}


def random_linear(in_features: int = 256, out_features: int = 128, *, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(in_features, out_features).to(dtype).requires_grad_(requires_grad=False)


def quantized(linear: nn.Linear, kind: Kind) -> QuantizedLinear:
    layer = quantized_form(lambda _: kind)("layer", linear)
    assert layer is not None
    return layer


def distance(first: Tensor, second: Tensor) -> float:
    return float((first.float() - second.float()).norm() / second.float().norm())


@pytest.mark.parametrize("kind", LAYERS)
def test_the_product_is_nearly_the_layers_own(kind: Kind) -> None:
    linear, x = random_linear(), torch.randn(2, 40, 256, dtype=torch.bfloat16)
    y = quantized(linear, kind)(x)
    assert y.shape == (2, 40, 128)
    assert y.dtype == torch.bfloat16
    assert 0 < distance(y, linear(x)) < LARGEST_ERROR[kind]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_single_token_gives_what_it_gives_among_others(kind: Kind) -> None:
    layer, x = quantized(random_linear(), kind), torch.randn(40, 256, dtype=torch.bfloat16)
    assert distance(layer(x[:1]), layer(x)[:1]) < 0.005


@pytest.mark.parametrize("kind", ["int8_weights", "int4"])
def test_kinds_that_round_weights_alone_multiply_with_the_weight_that_they_show(kind: Kind) -> None:
    layer, x = quantized(random_linear(dtype=torch.float32), kind), torch.randn(5, 256)
    torch.testing.assert_close(layer(x), F.linear(x, layer.full_weight(), layer.bias))


@pytest.mark.parametrize("kind", ["float8", "int8"])
def test_kinds_that_round_both_multiply_rounded_tokens_with_the_weight_that_they_show(kind: Kind) -> None:
    layer, x = quantized(random_linear(dtype=torch.float32), kind), torch.randn(5, 256)
    codes, scales = (FLOAT8 if kind == "float8" else INT8).round(x)
    torch.testing.assert_close(layer(x), F.linear(codes.float() * scales, layer.full_weight(), layer.bias))


def test_float8_on_a_cpu_gives_what_torchs_own_scaled_product_gives() -> None:
    layer, x = quantized(random_linear(), "float8"), torch.randn(32, 256, dtype=torch.bfloat16)
    codes, scales = FLOAT8.round(x)
    by_rows = F.ScalingType.RowWise
    theirs = F.scaled_mm(codes, layer.codes.T, scales, by_rows, layer.scales.T, by_rows, bias=layer.bias)
    assert distance(layer(x), theirs) < 0.005


def test_int8_sums_are_exact() -> None:
    layer, x = quantized(random_linear(dtype=torch.float32), "int8"), torch.randn(3, 256)
    assert isinstance(layer, Int8Linear)
    codes, scales = INT8.round(x)
    sums = codes.long() @ layer.codes.long().T
    assert torch.equal(layer(x), sums.float() * scales * layer.scales.T + random_linear(dtype=torch.float32).bias)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_planned_bytes_are_those_that_a_layer_takes(kind: Kind) -> None:
    layer = quantized(random_linear(192, 64), kind)
    assert layer.nbytes == stored_bytes(kind, 192, 64)
    assert layer.nbytes < random_linear(192, 64).weight.nbytes * 0.6


@pytest.mark.parametrize("kind", LAYERS)
def test_a_large_weight_is_quantized_in_pieces_as_it_is_in_one(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantized(random_linear(), kind)
    monkeypatch.setattr("schnell.engine.quantized._CHUNK", 256 * 10)
    pieces = quantized(random_linear(), kind)
    for name, stored in whole.named_buffers():
        assert torch.equal(stored.view(torch.uint8), pieces.get_buffer(name).view(torch.uint8)), name


def test_rows_of_zeros_stay_zeros() -> None:
    linear = random_linear()
    linear.weight[3] = 0
    for kind in LAYERS:
        layer = quantized(linear, kind)
        assert layer.full_weight()[3].abs().max() < 1e-9, kind
        assert torch.isfinite(layer(torch.zeros(2, 256, dtype=torch.bfloat16))).all(), kind


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.floats(1e-6, 1e4), st.integers(1, 4))
def test_no_number_is_further_off_than_half_a_step(seed: int, spread: float, rows: int) -> None:
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed)) * spread
    largest = x.abs().amax(1, keepdim=True)
    codes, scales = INT8.round(x)
    assert ((codes * scales - x).abs() <= largest / 127 * 0.501).all()
    float8, float8_scales = FLOAT8.round(x)
    # three bits behind the first: a sixteenth of each number, and the smallest step near zero
    assert ((float8.float() * float8_scales - x).abs() <= x.abs() / 16 * 1.001 + largest * 2**-18).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.floats(1e-5, 1e3), st.floats(-10, 10))
def test_four_bits_lose_less_than_a_plain_grid_over_the_groups_range(seed: int, spread: float, offset: float) -> None:
    weight = (torch.randn(3, 128, generator=torch.Generator().manual_seed(seed)) + offset) * spread
    codes, scales, offsets = to_int4(weight)
    assert int(codes.max()) <= 15
    groups = weight.view(3, 2, 64)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    plain = ((groups - low) / (high - low) * 15).round() / 15 * (high - low) + low
    ours = codes.view(3, 2, 64) * scales + offsets
    assert float((ours - groups).square().sum()) <= float((plain - groups).square().sum()) * 1.001


def test_layers_whose_size_a_kind_cannot_hold_stay_as_they_are() -> None:
    network = nn.ModuleDict({"odd": nn.Linear(30, 16), "even": nn.Linear(64, 16)}).requires_grad_(requires_grad=False)
    exchanged = quantize_linears(network, lambda _: "int4")
    assert list(exchanged) == ["even"]
    assert type(network["odd"]) is nn.Linear
    assert stored_bytes("int4", 30, 16) == 30 * 16 * 2


def test_embedders_the_last_layer_and_named_layers_stay_exact() -> None:
    kind_of = transformer_kinds("float8", "int8_weights", r"single_blocks\.[01]\.")
    assert kind_of("double_blocks.0.img_attn.qkv") == "float8"
    assert kind_of("double_blocks.18.txt_mlp.2") == "float8"
    assert kind_of("single_blocks.7.linear2") == "float8"
    assert kind_of("double_blocks.0.img_mod.lin") == "int8_weights"
    assert kind_of("single_blocks.7.modulation.lin") == "int8_weights"
    for path in ("img_in", "txt_in", "time_in.in_layer", "vector_in.out_layer", "final_layer.linear"):
        assert kind_of(path) is None
    assert kind_of("single_blocks.1.linear1") is None
    assert kind_of("single_blocks.10.linear1") == "float8"


def test_a_network_without_memory_is_filled_from_a_state_dict() -> None:
    full = nn.ModuleDict({"layer": random_linear()})
    quantize_linears(full, lambda _: "int4")
    with torch.device("meta"):
        empty = nn.ModuleDict({"layer": nn.Linear(256, 128, dtype=torch.bfloat16)})
    quantize_linears(empty, lambda _: "int4")
    empty.load_state_dict(full.state_dict(), assign=True)
    x = torch.randn(4, 256, dtype=torch.bfloat16)
    assert torch.equal(empty["layer"](x), full["layer"](x))


def test_one_layer_runs_in_either_arithmetic() -> None:
    linear, choice, x = random_linear(), PathChoice(), torch.randn(4, 256, dtype=torch.bfloat16)
    layer = two_path_form(lambda _: "float8", choice)("layer", linear)
    assert isinstance(layer, TwoPathLinear)
    exact = layer(x)
    choice.quantized = True
    assert torch.equal(exact, linear(x))
    assert torch.equal(layer(x), quantized(linear, "float8")(x))
    assert layer.full_weight() is linear.weight
    assert layer.nbytes == linear.weight.nbytes + stored_bytes("float8", 256, 128)


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_compile_without_a_break(kind: Kind) -> None:
    layer, x = quantized(random_linear(), kind), torch.randn(32, 256, dtype=torch.bfloat16)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(compiled(x), layer(x))
