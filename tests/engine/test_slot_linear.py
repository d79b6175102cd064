import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from schnell.engine.lora_factors import KroneckerFactors, Room, takes_columns
from schnell.engine.quantized import PathChoice, two_path_form
from schnell.engine.slot_linear import SlotLinear, SlotPlan, install_slots
from schnell.engine.slot_programs import widened
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.engine.weight_names import LayerRows
from schnell.engine.widened_linear import WidenedLinear

SLOTS, IN, OUT = 5, 12, 20
CPU = torch.device("cpu")


def build(
    ranks: dict[int, int], *, bias: bool = True, static: bool = False
) -> tuple[nn.Linear, SlotLinear, SlotRouting, dict[int, Tensor]]:
    torch.manual_seed(0)
    base, routing = nn.Linear(IN, OUT, bias=bias), SlotRouting(CPU, static=static)
    layer = SlotLinear(base, routing, SlotPlan(count=SLOTS, rank=16, reserved=static))
    deltas = {0: torch.zeros(OUT, IN)}
    for slot, rank in ranks.items():
        down, up = torch.randn(rank, IN), torch.randn(OUT, rank)
        layer.parts[0].write_low_rank(slot, down, up)
        deltas[slot] = up @ down
    return base, layer, routing, deltas


def merged(base: nn.Linear, x: Tensor, delta: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, base.weight + delta, base.bias)


def assert_close(ours: Tensor, expected: Tensor) -> None:
    assert (ours - expected).norm() <= 1e-5 * expected.norm()


@settings(max_examples=60, deadline=None)
@given(
    uses=st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.5, 0.8, 1.0, 3.0, -1.0])), max_size=2),
        min_size=1,
        max_size=6,
    ),
    static=st.booleans(),
)
@torch.inference_mode()
def test_every_row_gets_its_own_sum_of_deltas(uses: list[list[tuple[int, float]]], static: bool) -> None:
    base, layer, routing, deltas = build({1: 4, 2: 8, 3: 9, 4: 1}, static=static)
    x = torch.randn(len(uses), 7, IN)
    with routing.using([[SlotUse(*use) for use in row] for row in uses]):
        ours = layer(x)
    for row, row_uses in enumerate(uses):
        delta = sum((scale * deltas[slot] for slot, scale in row_uses), torch.zeros(OUT, IN))
        assert_close(ours[row], merged(base, x[row], delta))


@torch.inference_mode()
def test_what_was_gathered_for_a_batch_is_not_used_for_another() -> None:
    base, layer, routing, deltas = build({1: 4, 2: 8})
    x = torch.randn(1, 3, IN)

    def ours(slot: int, scale: float) -> Tensor:
        with routing.using([[SlotUse(slot, scale)]]):
            answer: Tensor = layer(x)
        return answer

    assert torch.equal(ours(1, 1.0), ours(1, 1.0))
    for slot, scale in ((1, 0.5), (2, 0.5), (1, 0.5)):
        assert_close(ours(slot, scale), merged(base, x, scale * deltas[slot]))
    down, up = torch.randn(4, IN), torch.randn(OUT, 4)
    layer.parts[0].write_low_rank(1, down, up)
    assert_close(ours(1, 0.5), merged(base, x, 0.5 * up @ down))


@torch.inference_mode()
def test_scale_zero_and_slot_zero_are_exactly_the_base_layer() -> None:
    base, layer, routing, _ = build({1: 4})
    x = torch.randn(2, 3, IN)
    with routing.using([[SlotUse(1, 0.0)], [SlotUse(0, 1.0)]]):
        assert torch.equal(layer(x), base(x))


@torch.inference_mode()
def test_a_row_without_lora_is_exactly_the_base_layer_beside_rows_with_one() -> None:
    base, layer, routing, _ = build({1: 4})
    x = torch.randn(3, 3, IN)
    with routing.using([[], [SlotUse(1, 1.0)], []]):
        ours = layer(x)
    assert torch.equal(ours[[0, 2]], base(x)[[0, 2]])
    assert not torch.equal(ours[1], base(x)[1])


@torch.inference_mode()
def test_layers_that_see_one_vector_a_row_take_loras_too() -> None:
    base, layer, routing, deltas = build({1: 4, 2: 8})
    x = torch.randn(3, IN)
    with routing.using([[SlotUse(1, 1.0)], [], [SlotUse(2, 0.5)]]):
        ours = layer(x)
    for row, delta in enumerate([deltas[1], deltas[0], 0.5 * deltas[2]]):
        assert_close(ours[row], merged(base, x[row], delta))


@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_dora_is_linear_in_its_scale_and_right_at_one(bias: bool) -> None:
    base, layer, routing, _ = build({}, bias=bias)
    down, up, magnitude = torch.randn(4, IN), torch.randn(OUT, 4), torch.rand(OUT) + 0.5
    moved = base.weight + up @ down
    g = magnitude / moved.norm(dim=1)
    layer.parts[0].write_low_rank(2, down, g[:, None] * up, g - 1)
    x = torch.randn(2, 3, IN)
    with routing.using([[SlotUse(2, 1.0)], [SlotUse(2, 0.25)]]):
        ours = layer(x)
    delta = g[:, None] * moved - base.weight
    assert_close(ours[0], merged(base, x[0], delta))
    assert_close(ours[1], merged(base, x[1], 0.25 * delta))


@torch.inference_mode()
def test_kronecker_factors_equal_their_product() -> None:
    base, layer, routing, deltas = build({1: 4})
    left, right = torch.randn(4, 3), torch.randn(5, 4)
    layer.parts[0].write_kronecker(3, KroneckerFactors(left, right, 0, OUT))
    x = torch.randn(2, 3, IN)
    with routing.using([[SlotUse(3, 0.8)], [SlotUse(1, 1.0), SlotUse(3, 2.0)]]):
        ours = layer(x)
    product = torch.kron(left, right)
    assert_close(ours[0], merged(base, x[0], 0.8 * product))
    assert_close(ours[1], merged(base, x[1], deltas[1] + 2 * product))


@torch.inference_mode()
def test_a_part_of_a_kronecker_product_is_those_rows_of_it() -> None:
    left, right = torch.randn(6, 3), torch.randn(5, 4)
    part = KroneckerFactors(left, right, 7, 7 + OUT)
    x = torch.randn(2, IN)
    assert_close(part.apply(x), x @ torch.kron(left, right)[7 : 7 + OUT].T)


@torch.inference_mode()
def test_a_cleared_slot_acts_as_none_and_a_reused_one_forgets_its_larger_rank() -> None:
    base, layer, routing, _ = build({1: 16})
    down, up = torch.randn(2, IN), torch.randn(OUT, 2)
    layer.parts[0].write_low_rank(1, down, up)
    x = torch.randn(1, 3, IN)
    with routing.using([[SlotUse(1, 1.0)]]):
        assert_close(layer(x)[0], merged(base, x[0], up @ down))
    layer.parts[0].clear(1)
    with routing.using([[SlotUse(1, 1.0)]]):
        assert torch.equal(layer(x), base(x))


PROGRAM_USES = {
    "compact": [SlotUse(1, 0.8)],
    "full": [SlotUse(3, 0.5), SlotUse(1, -1.0)],
    "any": [SlotUse(1, 0.8), SlotUse(2, 0.5), SlotUse(3, 0.3)],
}


def build_for_programs(
    in_features: int, out_features: int, rank: int, *, two_paths: bool
) -> tuple[nn.Linear, SlotLinear, SlotRouting]:
    """A widened layer of two parts: slots 1 and 2 hold LoRAs, slot 3 a DoRA."""
    torch.manual_seed(0)
    base, routing = (
        nn.Linear(in_features, out_features).requires_grad_(requires_grad=False),
        SlotRouting(CPU, static=True),
    )
    plain = nn.Linear(in_features, out_features)
    plain.load_state_dict(base.state_dict())
    rows = (LayerRows("a", 0, 8), LayerRows("b", 8, out_features))
    both = two_path_form(lambda _: "int8", PathChoice())("layer", base) if two_paths else None
    module = widened(both or base, rows, rank)
    layer = SlotLinear(module, routing, SlotPlan(count=SLOTS, rank=rank, reserved=True), rows)
    for slot, depth in ((1, 4), (2, rank), (3, rank)):
        for part in layer.parts:
            gain = torch.rand(part.out_features) * 0.2 if slot == 3 else None
            part.write_low_rank(slot, torch.randn(depth, in_features), torch.randn(part.out_features, depth), gain)
    return plain, layer, routing


@pytest.mark.parametrize("two_paths", [False, True])
@pytest.mark.parametrize("rank", [8, 48])
@pytest.mark.parametrize(("in_features", "out_features"), [(16, 32), (64, 16)])
@torch.inference_mode()
def test_a_program_computes_what_a_plain_run_does(
    in_features: int, out_features: int, rank: int, two_paths: bool
) -> None:
    base, layer, routing = build_for_programs(in_features, out_features, rank, two_paths=two_paths)
    assert torch.equal(layer.full_weight(), base.weight)
    for rows in (1, 2, 4):
        x = torch.randn(rows, 3, in_features)
        for form, uses in PROGRAM_USES.items():
            # all rows alike, and each with LoRAs of its own or with none
            for each in ([uses] * rows, [uses[row % 2 :] for row in range(rows - 1)] + [uses[:-1] or uses]):
                with routing.using(each):
                    assert routing.form == form or len(uses) > 1
                    layer.hold()
                    assert_close(layer.by_program(x), layer(x))
        assert_close(layer(x), base(x))


def test_wide_inputs_take_rows_and_narrow_ones_columns_as_long_as_there_are_few() -> None:
    assert takes_columns(3072, 21504, 16)
    assert not takes_columns(3072, 3072, 16)
    assert not takes_columns(3072, 21504, 128)
    assert not takes_columns(15360, 3072, 16)
    for in_features, out_features in ((3072, 21504), (15360, 3072)):
        layer = WidenedLinear(
            nn.Linear(in_features, out_features, device="meta"), (LayerRows("a", 0, out_features),), 64
        )
        more = layer.wide.numel() - in_features * out_features
        assert more == Room.of(in_features, out_features, 1, 64).numbers
        assert more < 0.06 * in_features * out_features


def test_any_module_with_the_form_of_a_linear_layer_can_be_the_base() -> None:
    """Quantized weights are no `weight` of the compute dtype: nothing may ask for one."""

    class Halved(nn.Module):
        def __init__(self, exact: nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features, self.bias = exact.in_features, exact.out_features, exact.bias
            self.codes = (exact.weight * 2).detach()

        def full_weight(self) -> Tensor:
            return self.codes / 2

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.full_weight(), self.bias)

    exact, routing = nn.Linear(IN, OUT), SlotRouting(CPU)
    network = nn.ModuleDict({"layer": Halved(exact)})
    part = install_slots(network, routing, SlotPlan(count=3))["layer"]
    assert torch.allclose(part.weight(), exact.weight)
    down, up = torch.randn(4, IN), torch.randn(OUT, 4)
    part.write_low_rank(1, down, up)
    x = torch.randn(1, 3, IN)
    with torch.inference_mode(), routing.using([[SlotUse(1, 1.0)]]):
        assert_close(network["layer"](x)[0], merged(exact, x, up @ down)[0])
