"""The compiler's programs: made in the warm-up, and none after it. Counted with a backend that compiles nothing."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from adapter_files import write_canonical
from counts import SOAK
from schnell.engine import compiled_blocks
from schnell.engine.adapter_slots import AdapterSlots
from schnell.engine.compiled_blocks import CompiledBlocks
from schnell.engine.compiler import in_program_sizes
from schnell.engine.denoise import Drawing, begin_drawing, predict_velocity
from schnell.engine.flux import Flux, FluxParams
from schnell.engine.slot_linear import SlotPlan, install_slots, slot_parts
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.engine.text import PromptEmbedding
from schnell.engine.weight_names import layer_rows
from schnell.spec import AdapterUse, Size

CPU, TEXT_TOKENS, RANK, SLOTS = torch.device("cpu"), 8, 24, 6
PARAMS = FluxParams(
    in_channels=64, out_channels=64, vec_in_dim=12, context_in_dim=20, hidden_size=32, num_heads=2,
    depth=1, depth_single_blocks=2, axes_dim=(4, 6, 6),
)  # fmt: skip
SIZES = (Size(6, 6), Size(8, 5))
#: Each number of rows has programs of its own, seconds of work each: one row is a special case, two are several.
ROWS = compiled_blocks.ROWS if SOAK else (1, 2)


class Served:
    """A random network with reserved slots, its blocks compiled; `compiled` counts programs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        torch._dynamo.reset()
        self.compiled = 0
        self.network = Flux(PARAMS).eval().requires_grad_(requires_grad=False)
        self.routing = SlotRouting(CPU, static=True)
        plan = SlotPlan(count=SLOTS, rank=RANK, reserved=True, widened=True)
        parts = install_slots(self.network, self.routing, plan, layer_rows)
        self.slots = AdapterSlots({f"transformer.{k}": v for k, v in parts.items()}, self.routing, plan, 1 << 30)
        self.blocks = CompiledBlocks(self.network, self.routing, self._count)

    def _count(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        self.compiled += 1
        return graph

    @torch.inference_mode()
    def step(self, uses: list[list[SlotUse]], grid: Size) -> Tensor:
        """Velocities (rows, tokens, channels), in batches of the sizes that a server steps in."""
        generator = torch.Generator().manual_seed(0)
        states, pooled = torch.randn(TEXT_TOKENS, 20, generator=generator), torch.randn(12, generator=generator)
        prompt = PromptEmbedding(states, pooled, was_truncated=False)
        rows = [begin_drawing(prompt, seed, 4, grid, tuple(row)) for seed, row in enumerate(uses)]
        return torch.cat([self._velocities(batch)[:count] for batch, count in in_program_sizes(rows, ROWS)])

    def _velocities(self, batch: list[Drawing]) -> Tensor:
        with self.routing.using([row.slots for row in batch]):
            return predict_velocity(self.network, batch)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_blocks, "ROWS", ROWS)
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
            # of full rank: as a low-rank product it would be one LoRA more
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
        kind, rank = kinds[index % len(kinds)], random.choice([1, 2, 5, 8, 16, 17, 24])
        use = write_adapter(served, tmp_path / f"{index}.safetensors", kind, rank, index)
        served.slots.load(1 + index % (SLOTS - 1), use)
        held = range(1, min(index + 2, SLOTS))
        # every number of rows from 1 to 8, every number of LoRAs a row from none to five
        for rows in (1, 2, 4, (3, 5, 6, 7, 8)[index % 5]):
            most = random.choice([1, 2, 3, 5])
            uses = [[SlotUse(random.choice(held), 0.8) for _ in range(random.randint(0, most))] for _ in range(rows)]
            served.step(uses, SIZES[(index + rows) % 2])
    assert seen > 0
    assert served.compiled == seen


ONE, TWO = SlotUse(1, 0.7), SlotUse(2, 1.0)
BATCHES = {
    "alone": [[ONE]],
    "two alone": [[TWO, ONE]],
    "three": [[TWO, ONE, ONE]],
    "mixed": [[ONE], [], [TWO, ONE], [TWO]],
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", ["LoRA", "attention", "DoRA", "LoKr"])
def test_compiled_blocks_draw_what_plain_ones_draw(served: Served, kind: str, batch: str, tmp_path: Path) -> None:
    served.slots.load(1, write_adapter(served, tmp_path / "a.safetensors", kind, 4, 0))
    served.slots.load(2, write_adapter(served, tmp_path / "b.safetensors", "LoRA", 8, 1))
    uses, seen = BATCHES[batch], served.compiled
    compiled = served.step(uses, SIZES[0])
    assert served.compiled == seen
    with torch.compiler.set_stance("force_eager"):
        plain = served.step(uses, SIZES[0])
        without = served.step([[]] * len(uses), SIZES[0])
    assert (compiled - plain).norm() <= 1e-5 * plain.norm()
    assert (plain[0] - without[0]).norm() > 1e-3 * plain[0].norm()
    # a row without LoRA is what it is in a batch without any: slot 0 is all zeros
    for row, row_uses in enumerate(uses):
        assert bool(row_uses) or torch.allclose(plain[row], without[row], atol=1e-6)
