"""The memory of LoRA slots: bounded by the plan, given back, and never left half taken."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor, nn

from adapter_files import random_adapter, write_canonical
from counts import repeats
from schnell.engine.adapter_slots import AdapterSlots
from schnell.engine.slot_linear import SlotLinear, SlotPart, SlotPlan, install_slots
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.engine.weight_names import LayerRows
from schnell.errors import AdapterError

CPU, WIDTH = torch.device("cpu"), 160
PLAN = SlotPlan(count=5, rank=128)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fused, self.plain = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)


def rows_of(path: str, out: int) -> tuple[LayerRows, ...]:
    if path == "plain":
        return (LayerRows("transformer.plain", 0, out),)
    return tuple(LayerRows(f"transformer.{name}", i * WIDTH, (i + 1) * WIDTH) for i, name in enumerate("qkv"))


def build(plan: SlotPlan) -> tuple[AdapterSlots, dict[str, SlotPart], SlotRouting]:
    torch.manual_seed(0)
    routing = SlotRouting(CPU, static=plan.reserved)
    parts = install_slots(Tiny().requires_grad_(requires_grad=False), routing, plan, rows_of)
    return AdapterSlots(parts, routing, plan, 1 << 20), parts, routing


def planned(plan: SlotPlan) -> int:
    """The most that both layers' slots take: down and up factors of each part, and DoRA's gains."""
    numbers = sum(plan.rank * (parts * WIDTH + parts * WIDTH) + parts * WIDTH for parts in (3, 1))
    return plan.count * numbers * plan.dtype.itemsize


def source(parts: dict[str, SlotPart]) -> nn.Module:
    """A network whose layers have the names that adapters use, without their component."""
    return nn.ModuleDict({name.removeprefix("transformer."): nn.Linear(WIDTH, WIDTH) for name in parts})


@pytest.mark.parametrize("reserved", [False, True])
def test_no_sequence_of_loras_takes_more_than_the_plan_and_all_of_it_is_given_back(
    reserved: bool, tmp_path: Path
) -> None:
    plan, random = replace(PLAN, reserved=reserved), Random(0)
    slots, parts, _ = build(plan)
    before = slots.slot_bytes
    assert before == (planned(plan) if reserved else 0)
    for index in range(repeats(200)):
        rank = random.choice([4, 8, 16, 24, 64, 100, 128])
        use = random_adapter(tmp_path / f"{index}.safetensors", source(parts), rank=rank, seed=index)
        slots.load(random.randint(1, PLAN.count - 1), use)
        assert slots.slot_bytes <= planned(plan)
    for slot in range(1, PLAN.count):
        slots.clear(slot)
    assert slots.slot_bytes == before


@pytest.mark.parametrize("failing", [1, 2, 3])
@torch.inference_mode()
def test_a_layer_that_ran_out_of_memory_while_it_grew_works_as_before(
    failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, routing = nn.Linear(12, 20), SlotRouting(CPU)
    layer = SlotLinear(base, routing, SlotPlan(count=3))
    [part] = layer.parts
    down, up = torch.randn(4, 12), torch.randn(20, 4)
    part.write_low_rank(1, down, up)
    zeros, calls = SlotLinear._zeros, 0

    def short_of_memory(self: SlotLinear, *shape: int) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise torch.OutOfMemoryError
        return zeros(self, *shape)

    x = torch.randn(1, 3, 12)
    with monkeypatch.context() as patch:
        patch.setattr(SlotLinear, "_zeros", short_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            part.write_low_rank(2, torch.randn(64, 12), torch.randn(20, 64), torch.ones(20))
    with routing.using([[SlotUse(1, 1.0)]]):
        assert torch.allclose(layer(x), base(x) + x @ (up @ down).T, atol=1e-5)
    larger = torch.randn(64, 12), torch.randn(20, 64)
    part.write_low_rank(2, *larger)
    with routing.using([[SlotUse(2, 1.0)]]):
        assert torch.allclose(layer(x), base(x) + x @ (larger[1] @ larger[0]).T, atol=1e-3)


def test_a_rank_above_the_plan_is_refused_with_both_numbers_unless_it_hardly_needs_it(tmp_path: Path) -> None:
    slots, parts, routing = build(replace(PLAN, rank=8))
    full = {"transformer.q.lora_A": torch.randn(32, WIDTH), "transformer.q.lora_B": torch.randn(WIDTH, 32)}
    with pytest.raises(AdapterError, match=r"has rank 32, and this server's LoRA slots hold rank 8.*SCHNELL_LORA_RANK"):
        slots.load(1, write_canonical(tmp_path / "full.safetensors", full, rank=32))
    scales = torch.tensor([1.0] * 6 + [1e-3] * 26)
    nearly = {
        "transformer.q.lora_A": torch.linalg.qr(torch.randn(WIDTH, 32))[0].T * scales[:, None],
        "transformer.q.lora_B": torch.linalg.qr(torch.randn(WIDTH, 32))[0],
    }
    use = write_canonical(tmp_path / "nearly.safetensors", nearly, rank=32)
    slots.load(1, use)
    [warning] = slots.warnings_for(use.sha256)
    assert "has rank 32; it is drawn with rank 8" in warning
    layer, x = parts["transformer.q"].layer, torch.randn(1, 3, WIDTH)
    with torch.inference_mode(), routing.using([[SlotUse(1, 1.0)]]):
        moved = layer(x)[..., :WIDTH] - layer.base(x)[..., :WIDTH]
    delta = nearly["transformer.q.lora_B"] @ nearly["transformer.q.lora_A"]
    assert torch.allclose(moved, x @ delta.T, atol=0.02)


def test_a_lokr_that_is_a_low_rank_product_becomes_one_where_shapes_must_not_change(tmp_path: Path) -> None:
    thin = {"transformer.q.lokr_w1": torch.randn(2, 2), "transformer.q.lokr_w2_a": torch.randn(WIDTH // 2, 3)}
    thin["transformer.q.lokr_w2_b"] = torch.randn(3, WIDTH // 2)
    full = {"transformer.q.lokr_w1": torch.randn(2, 2), "transformer.q.lokr_w2": torch.randn(WIDTH // 2, WIDTH // 2)}
    x, found = torch.randn(1, 3, WIDTH), []
    for reserved in (False, True):
        slots, parts, routing = build(replace(PLAN, rank=8, reserved=reserved))
        slots.load(1, write_canonical(tmp_path / f"thin-{reserved}.safetensors", thin, rank=3))
        slots.load(2, write_canonical(tmp_path / f"full-{reserved}.safetensors", full, rank=0))
        layer = parts["transformer.q"].layer
        for uses, low_rank in (([SlotUse(1, 0.5)], reserved), ([SlotUse(1, 1.0), SlotUse(2, 1.0)], False)):
            with torch.inference_mode(), routing.using([uses]):
                assert routing.form == ("compact" if low_rank else "any")
                found.append(layer(x))
    assert torch.allclose(found[0], found[2], atol=1e-3)
    assert torch.allclose(found[1], found[3], atol=1e-3)


def test_a_row_without_lora_costs_no_copy_of_the_batch_where_routing_is_static() -> None:
    _, parts, routing = build(replace(PLAN, reserved=True))
    layer = parts["transformer.q"].layer
    parts["transformer.q"].write_low_rank(1, torch.randn(4, WIDTH), torch.randn(WIDTH, 4))
    x = torch.randn(2, 3, WIDTH)
    with torch.inference_mode(), routing.using([[SlotUse(1, 1.0)], []]):
        assert routing.rows is None
        mixed = layer(x)
    assert torch.equal(mixed[1], layer.base(x)[1])
    assert not torch.equal(mixed[0], layer.base(x)[0])
