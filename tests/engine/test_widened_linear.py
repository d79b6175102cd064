"""LoRAs beside float8 weights: rounded as these are, and no further from exact than they are."""

from typing import Final

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.quantized import LAYERS, Kind
from schnell.engine.slot_linear import SlotLinear, SlotPlan
from schnell.engine.slot_programs import widened
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.engine.weight_names import LayerRows
from schnell.engine.widened_linear import WidenedQuantizedLinear

CPU, RANK = torch.device("cpu"), 32
#: The error of the layer's own product without LoRA, relative to what comes out: that of its inputs and its weights.
ROUNDING: Final[dict[Kind, float]] = {"float8": 0.05}
SHAPES = [(256, 768), (768, 256)]
FIRST, SECOND, DORA = SlotUse(1, 0.8), SlotUse(2, -0.6), SlotUse(3, 1.2)


class Layer:
    """A quantized layer of two parts, with LoRAs of rank 8 and 32 in slots 1 and 2 and a DoRA in slot 3."""

    def __init__(self, kind: Kind, in_features: int, out_features: int, strength: float = 0.3) -> None:
        torch.manual_seed(0)
        self.exact = nn.Linear(in_features, out_features).requires_grad_(requires_grad=False)
        self.routing = SlotRouting(CPU, static=True)
        rows = (LayerRows("a", 0, 112), LayerRows("b", 112, out_features))
        quantized = LAYERS[kind](in_features, out_features, self.exact.bias, torch.float32)
        quantized.fill(self.exact.weight)
        wide = widened(quantized, rows, RANK)
        assert isinstance(wide, WidenedQuantizedLinear)
        self.plain, self.wide = quantized, wide
        plan = SlotPlan(count=4, rank=RANK, reserved=True, widened=True)
        self.layer = SlotLinear(self.wide, self.routing, plan, rows)
        self.deltas: dict[int, Tensor] = {}
        for slot, rank in ((1, 8), (2, RANK), (3, 16)):
            # as large as so much of the weights, whatever the rank
            size = (strength * self.exact.weight.std() / rank**0.5) ** 0.5
            down, up = torch.randn(rank, in_features) * size, torch.randn(out_features, rank) * size
            gain = torch.rand(out_features) * 0.2 if slot == 3 else None
            delta = torch.zeros_like(self.exact.weight)
            for part in self.layer.parts:
                outputs = slice(part.start, part.stop)
                factors = torch.randn(rank, in_features) * size if part.index else down
                part.write_low_rank(slot, factors, up[outputs], None if gain is None else gain[outputs])
                delta[outputs] = up[outputs] @ factors
            self.deltas[slot] = delta if gain is None else delta + gain[:, None] * self.exact.weight

    def exact_sum(self, x: Tensor, uses: list[list[SlotUse]]) -> Tensor:
        rows = []
        for inputs, row in zip(x, uses, strict=True):
            weight = self.exact.weight + sum(use.scale * self.deltas[use.slot] for use in row)
            rows.append(F.linear(inputs, weight, self.exact.bias))
        return torch.stack(rows)

    @torch.inference_mode()
    def error(self, x: Tensor, uses: list[list[SlotUse]]) -> float:
        exact = self.exact_sum(x, uses)
        with self.routing.using(uses):
            self.layer.hold()
            drawn = self.layer.by_program(x)
        return float((drawn - exact).norm() / exact.norm())


@pytest.fixture(scope="module", params=[(kind, *shape) for kind in ROUNDING for shape in SHAPES])
def made(request: pytest.FixtureRequest) -> tuple[Kind, Layer]:
    kind, in_features, out_features = request.param
    return kind, Layer(kind, in_features, out_features)


@torch.inference_mode()
def test_without_loras_it_is_the_layer_that_it_was(made: tuple[Kind, Layer]) -> None:
    _, layer = made
    x = torch.randn(2, 40, layer.exact.in_features)
    assert torch.equal(layer.wide.forward(x), layer.plain.forward(x))
    assert torch.equal(layer.wide.full_weight(), layer.plain.full_weight())


@pytest.mark.parametrize(
    "uses",
    [
        [[FIRST]],
        [[SECOND, FIRST]],
        [[DORA]],
        [[FIRST], [SECOND]],
        [[DORA, FIRST], []],
        [[FIRST], [], [SlotUse(1, -0.3)], [FIRST]],
    ],
)
def test_rows_have_their_own_loras_within_the_layers_own_rounding(
    made: tuple[Kind, Layer], uses: list[list[SlotUse]]
) -> None:
    kind, layer = made
    assert layer.error(torch.randn(len(uses), 40, layer.exact.in_features), uses) < ROUNDING[kind]


@pytest.mark.parametrize("strength", [1e-4, 3.0, 100.0])
@pytest.mark.parametrize(("in_features", "out_features"), SHAPES)
@pytest.mark.parametrize("kind", ROUNDING)
def test_loras_far_weaker_and_far_stronger_than_the_weights_fit(
    kind: Kind, in_features: int, out_features: int, strength: float
) -> None:
    layer = Layer(kind, in_features, out_features, strength)
    # such a LoRA leaves the inputs fewer steps
    most = ROUNDING[kind] * (3 if strength > 1 else 1.2)
    assert layer.error(torch.randn(1, 40, in_features), [[FIRST]]) < most


def test_a_slot_that_is_written_anew_is_rounded_anew() -> None:
    layer = Layer("float8", 256, 768)
    x = torch.randn(1, 40, 256)
    before = layer.error(x, [[FIRST]])
    for part in layer.layer.parts:
        part.write_low_rank(1, torch.zeros(8, 256), torch.zeros(part.out_features, 8))
    assert layer.error(x, [[FIRST]]) > before + 0.05
    layer.deltas[1] = torch.zeros_like(layer.exact.weight)
    assert layer.error(x, [[FIRST]]) < ROUNDING["float8"]
