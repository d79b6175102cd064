"""The compiler's programs: made in the warm-up, and none after it. Counted with a backend that compiles nothing."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from adapter_files import write_canonical
from schnell.engine.adapter_slots import AdapterSlots
from schnell.engine.compiled_blocks import ROWS, CompiledBlocks
from schnell.engine.denoise import position_ids
from schnell.engine.flux import Flux, FluxParams
from schnell.engine.slot_linear import SlotPlan, install_slots, slot_parts
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.engine.weight_names import layer_rows
from schnell.spec import AdapterUse, Size

CPU, TEXT_TOKENS, RANK, SLOTS = torch.device("cpu"), 8, 8, 6
PARAMS = FluxParams(
    in_channels=16, out_channels=16, vec_in_dim=12, context_in_dim=20, hidden_size=32, num_heads=2,
    depth=1, depth_single_blocks=2, axes_dim=(4, 6, 6),
)  # fmt: skip
SIZES = (Size(6, 6), Size(8, 5))


class Served:
    """A random network with reserved slots, its blocks compiled; `compiled` counts programs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        torch._dynamo.reset()
        self.compiled = 0
        self.network = Flux(PARAMS).eval().requires_grad_(requires_grad=False)
        self.routing = SlotRouting(CPU, static=True)
        plan = SlotPlan(count=SLOTS, rank=RANK, reserved=True)
        parts = install_slots(self.network, self.routing, plan, layer_rows)
        self.slots = AdapterSlots({f"transformer.{k}": v for k, v in parts.items()}, self.routing, plan, 1 << 30)
        self.blocks = CompiledBlocks(self.network, self.routing, self._count)

    def _count(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        self.compiled += 1
        return graph

    @torch.inference_mode()
    def step(self, uses: list[list[SlotUse]], grid: Size, seed: int = 0) -> Tensor:
        torch.manual_seed(seed)
        rows = len(uses)
        with self.routing.using(uses):
            velocity: Tensor = self.network(
                torch.randn(rows, grid.width * grid.height, PARAMS.in_channels),
                torch.randn(rows, TEXT_TOKENS, PARAMS.context_in_dim),
                position_ids(grid, TEXT_TOKENS),
                torch.rand(rows),
                torch.randn(rows, PARAMS.vec_in_dim),
            )
        return velocity


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    for _ in served.blocks.warm_up(TEXT_TOKENS, CPU, torch.float32):
        pass
    yield served
    torch._dynamo.reset()


def write_adapter(served: Served, path: Path, kind: str, rank: int, seed: int) -> AdapterUse:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, part in slot_parts(served.network).items():
        if "transformer_blocks" not in name or (kind == "attention" and "attn" not in name):
            continue
        out, into, stem = part.out_features, part.in_features, f"transformer.{name}"
        if kind == "LoKr":
            tensors[f"{stem}.lokr_w1"] = torch.randn(2, 2, generator=generator) * 0.1
            tensors[f"{stem}.lokr_w2"] = torch.randn(out // 2, into // 2, generator=generator) * 0.1
            continue
        tensors[f"{stem}.lora_A"] = torch.randn(rank, into, generator=generator) * 0.2
        tensors[f"{stem}.lora_B"] = torch.randn(out, rank, generator=generator) * 0.2
        if kind == "DoRA":
            tensors[f"{stem}.dora_magnitude"] = torch.rand(out, generator=generator) + 0.5
    return write_canonical(path, tensors, rank=rank)


def test_fifty_loras_of_all_kinds_rows_and_sizes_compile_nothing_after_the_warm_up(
    served: Served, tmp_path: Path
) -> None:
    seen, random = served.compiled, Random(0)
    kinds = ["LoRA", "attention", "LoRA", "DoRA", "LoKr"]
    for index in range(50):
        kind, rank = kinds[index % len(kinds)], random.choice([1, 2, 4, 5, 8])
        use = write_adapter(served, tmp_path / f"{index}.safetensors", kind, rank, index)
        served.slots.load(1 + index % (SLOTS - 1), use)
        for rows in (*ROWS, 3):
            held = range(1, min(index + 2, SLOTS))
            uses = [
                [SlotUse(random.choice(held), 0.8) for _ in range(random.choice([0, 1, 2, 2, 3]))] for _ in range(rows)
            ]
            served.step(uses, SIZES[(index + rows) % 2])
    assert seen > 0
    assert served.compiled == seen


@pytest.mark.parametrize("kind", ["LoRA", "attention", "DoRA", "LoKr"])
def test_compiled_blocks_draw_what_plain_ones_draw(served: Served, kind: str, tmp_path: Path) -> None:
    served.slots.load(1, write_adapter(served, tmp_path / "a.safetensors", kind, 4, 0))
    served.slots.load(2, write_adapter(served, tmp_path / "b.safetensors", "LoRA", 8, 1))
    uses = [[SlotUse(1, 0.7)], [], [SlotUse(2, 1.0), SlotUse(1, 0.5)], [SlotUse(2, 1.0)]]
    compiled = served.step(uses, SIZES[0])
    with torch.compiler.set_stance("force_eager"):
        plain = served.step(uses, SIZES[0])
        without = served.step([[]] * 4, SIZES[0])
    assert (compiled - plain).norm() <= 1e-5 * plain.norm()
    # a row without LoRA is what it is in a batch without any: slot 0 is all zeros
    assert torch.allclose(plain[1], without[1], atol=1e-6)
    assert (plain[0] - without[0]).norm() > 1e-3 * plain[0].norm()
