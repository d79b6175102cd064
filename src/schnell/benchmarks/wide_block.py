"""What LoRAs cost at FLUX.1's own width: one double and one single block of 3072 channels with random weights."""

from typing import Final

import torch

from schnell.benchmarks.result import BenchmarkResult, median_pair
from schnell.engine.denoise import position_ids
from schnell.engine.flux import Flux, FluxParams
from schnell.engine.slot_linear import SlotPart, SlotPlan, install_slots
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.engine.weight_names import layer_rows
from schnell.spec import Size

ROWS, GRID, TEXT_TOKENS, RANK, SLOTS = 4, Size(8, 8), 32, 16, 8
_TARGETS: Final = ("attn.", "ff", "proj_mlp", "proj_out")


def wide_block() -> BenchmarkResult:
    """A forward pass of 4 rows, each with its own LoRA of rank 16, against the same pass without."""
    torch.manual_seed(0)
    network, routing = build_blocks(), SlotRouting(torch.device("cpu"))
    _fill_slots(install_slots(network, routing, SlotPlan(count=SLOTS, rank=RANK), layer_rows))
    inputs = _inputs()

    def forward(uses: list[list[SlotUse]]) -> None:
        with torch.inference_mode(), routing.using(uses):
            network(*inputs)

    ours, peer = median_pair(
        lambda: forward([[SlotUse(1 + row, 0.8)] for row in range(ROWS)]), lambda: forward([[]] * ROWS), times=3
    )
    tokens = GRID.width * GRID.height + TEXT_TOKENS
    return BenchmarkResult(
        ours=ROWS / ours,
        unit="rows/s",
        ours_is=f"{ROWS} rows of {tokens} tokens, {ROWS} LoRAs of rank {RANK} on all attention and MLP linears",
        peer=ROWS / peer,
        peer_is="the same rows without LoRA",
        ratio=peer / ours,
    )


def build_blocks() -> Flux:
    """One double and one single block of FLUX.1's width, between its own input and output layers."""
    network = Flux(FluxParams(depth=1, depth_single_blocks=1))
    return network.eval().requires_grad_(requires_grad=False)


def _fill_slots(layers: dict[str, SlotPart]) -> None:
    for path, layer in layers.items():
        if "transformer_blocks" in path and "norm" not in path and any(target in path for target in _TARGETS):
            for slot in range(1, SLOTS):
                layer.write_low_rank(slot, torch.randn(RANK, layer.in_features), torch.randn(layer.out_features, RANK))


def _inputs() -> tuple[torch.Tensor, ...]:
    return (
        torch.randn(ROWS, GRID.width * GRID.height, 64),
        torch.randn(ROWS, TEXT_TOKENS, 4096),
        position_ids(GRID, TEXT_TOKENS),
        torch.full((ROWS,), 0.5),
        torch.randn(ROWS, 768),
    )
