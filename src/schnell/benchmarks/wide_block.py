"""What LoRAs cost at FLUX.1's own width: one double and one single block of 3072 channels with random weights."""

from typing import Any, Final

import torch

from schnell.benchmarks.result import BenchmarkResult, median_pair
from schnell.engine.cpu_forward import FluxForward
from schnell.engine.denoise import position_ids
from schnell.engine.network_classes import network_class
from schnell.engine.slot_linear import SlotLinear, install_slots
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.spec import Size

ROWS, GRID, TEXT_TOKENS, RANK, SLOTS = 4, Size(8, 8), 32, 16, 8
_TARGETS: Final = ("attn.", "ff", "proj_mlp", "proj_out")


def wide_block() -> BenchmarkResult:
    """A forward pass of 4 rows, each with its own LoRA of rank 16, against the same pass without."""
    torch.manual_seed(0)
    network, routing = build_blocks(), SlotRouting(torch.device("cpu"))
    layers = install_slots(network, routing, SLOTS)
    _fill_slots(layers)
    inputs, blocks = _inputs(), FluxForward(network)

    def forward(uses: list[list[SlotUse]]) -> None:
        with torch.inference_mode(), routing.using(uses):
            blocks(**inputs)

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


def build_blocks() -> Any:
    """One double and one single block of FLUX.1's width, between its own input and output layers."""
    return (
        network_class("transformer")(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=4096,
            pooled_projection_dim=768,
        )
        .eval()
        .requires_grad_(requires_grad=False)
    )


def _fill_slots(layers: dict[str, SlotLinear]) -> None:
    for path, layer in layers.items():
        if "transformer_blocks" in path and "norm" not in path and any(target in path for target in _TARGETS):
            for slot in range(1, SLOTS):
                layer.write_low_rank(slot, torch.randn(RANK, layer.in_features), torch.randn(layer.out_features, RANK))


def _inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(ROWS, GRID.width * GRID.height, 64),
        "encoder_hidden_states": torch.randn(ROWS, TEXT_TOKENS, 4096),
        "pooled_projections": torch.randn(ROWS, 768),
        "timestep": torch.full((ROWS,), 0.5),
        "img_ids": position_ids(GRID, torch.device("cpu")),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }
