"""Modulation of all blocks at once is what each block makes of itself, from weights that are in memory once."""

import pytest
import torch
from torch import Tensor, nn

from schnell.engine.flux import Flux, FluxParams
from schnell.engine.joined_modulation import JoinedModulation, join_modulation
from schnell.engine.quantized import quantize_linears
from schnell.engine.slot_linear import SlotPlan, install_slots, slot_parts
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.engine.weight_names import layer_rows

PARAMS = FluxParams(
    in_channels=16, out_channels=16, vec_in_dim=12, context_in_dim=20, hidden_size=32, num_heads=2,
    depth=2, depth_single_blocks=3, axes_dim=(4, 6, 6),
)  # fmt: skip
LORA, OTHER, DORA = SlotUse(1, 0.7), SlotUse(2, 1.3), SlotUse(3, 0.9)


class Joined:
    """A random network, its modulation joined, with plain LoRAs in slots 1 and 2 and a DoRA in slot 3."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.routing = SlotRouting(torch.device("cpu"), static=True)
        self.network = Flux(PARAMS).eval().requires_grad_(requires_grad=False)
        self.before = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        install_slots(self.network, self.routing, SlotPlan(count=4, rank=24, reserved=True), layer_rows)
        for slot, rank in ((1, 4), (2, 24), (3, 8)):
            self.write(slot, rank)
        joined = join_modulation(self.network, lambda part: part)
        assert joined is not None
        self.joined: JoinedModulation = joined

    def write(self, slot: int, rank: int) -> None:
        for name, part in slot_parts(self.network).items():
            if "norm" in name:
                gain = torch.rand(part.out_features) if slot == 3 else None
                down, up = torch.randn(rank, part.in_features), torch.randn(part.out_features, rank)
                part.write_low_rank(slot, down, up, gain)

    @torch.inference_mode()
    def compare(self, signal: Tensor, uses: list[list[SlotUse]]) -> None:
        blocks = [*self.network.double_blocks, *self.network.single_blocks]
        with self.routing.using(uses):
            made = self.joined(signal)
            assert len(made) == len(blocks)
            for block, vectors in zip(blocks, made, strict=True):
                layers = [getattr(block, name) for name in ("img_mod", "txt_mod", "modulation") if hasattr(block, name)]
                places = torch.split(vectors, vectors.shape[1] // len(layers), dim=1)
                for layer, ahead in zip(layers, places, strict=True):
                    for given, own in zip(layer(ahead), layer(signal), strict=True):
                        for one, other in zip(given, own, strict=True):
                            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def joined() -> Joined:
    return Joined()


@pytest.mark.parametrize("uses", [[], [LORA], [OTHER, LORA], [DORA], [DORA, LORA]])
def test_a_row_gets_what_its_blocks_would_make(joined: Joined, uses: list[SlotUse]) -> None:
    joined.compare(torch.randn(1, 32), [uses])


def test_rows_without_loras_share_the_product(joined: Joined) -> None:
    joined.compare(torch.randn(4, 32), [[]] * 4)


def test_a_slot_that_is_written_anew_is_read_anew(joined: Joined) -> None:
    joined.compare(torch.randn(1, 32), [[LORA]])
    joined.write(1, 6)
    joined.compare(torch.randn(1, 32), [[LORA]])


@pytest.mark.parametrize("uses", [[[LORA], [OTHER]], [[], [DORA]]])
def test_rows_have_loras_of_their_own(joined: Joined, uses: list[list[SlotUse]]) -> None:
    joined.compare(torch.randn(len(uses), 32), uses)


def test_rows_with_more_loras_than_are_held_are_left_to_the_blocks(joined: Joined) -> None:
    signal = torch.randn(2, 32)
    with joined.routing.using([[LORA, OTHER], [OTHER]]):
        assert all(each is signal for each in joined.joined(signal))


def test_weights_are_what_they_were_and_in_memory_once(joined: Joined) -> None:
    memory = joined.joined._parts[0][0].wide.untyped_storage().data_ptr()
    for block in joined.network.double_blocks:
        for name in ("img_mod", "txt_mod"):
            assert getattr(block, name).lin.base.weight.untyped_storage().data_ptr() == memory
    now = {name.replace(".base.", "."): tensor for name, tensor in joined.network.state_dict().items()}
    assert all(torch.equal(now[name], tensor) for name, tensor in joined.before.items())


def test_quantized_modulation_is_left_to_the_blocks() -> None:
    network = Flux(PARAMS)
    quantize_linears(network, lambda path: "int8_weights" if "mod" in path else None)
    routing = SlotRouting(torch.device("cpu"), static=True)
    install_slots(network, routing, SlotPlan(count=2, rank=8, reserved=True), layer_rows)
    assert join_modulation(network, nn.Identity) is None
