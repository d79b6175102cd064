import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from adapter_files import random_adapter, random_adapters, write_canonical
from conftest import make_job
from lora_layouts import dense_delta
from pictures import psnr
from schnell.adapters import read_adapter
from schnell.engine.adapter_slots import AdapterSlots
from schnell.engine.denoise import Drawing
from schnell.engine.device import FLOAT32
from schnell.engine.engine import Engine
from schnell.engine.loaded_model import PromptRequest
from schnell.engine.loading import Networks
from schnell.engine.slot_linear import SlotPlan, install_slots, slot_parts
from schnell.engine.slot_routing import SlotRouting, SlotUse
from schnell.errors import AdapterError
from schnell.models.folder import ModelFolder, open_model_folder
from schnell.serving.slot_leases import SlotLeases
from schnell.spec import AdapterUse, Job, Size

CPU = torch.device("cpu")


@pytest.fixture
def engine(random_flux: Path) -> Engine:
    return Engine(open_model_folder(random_flux), CPU, adapter_slots=3)


@pytest.fixture
def adapters(engine: Engine, tmp_path: Path) -> list[AdapterUse]:
    return random_adapters(tmp_path, networks(engine).transformer, ranks=[4, 8, 9, 16])


def networks(engine: Engine) -> Networks:
    return engine._loaded_model(FLOAT32).networks  # the tests look at the weights that requests must not touch


def lora_job(*uses: AdapterUse, seed: int = 7, steps: int = 2) -> Job:
    return replace(make_job("red apple", seed=seed, steps=steps, size=Size(256, 256), go_fast=False), adapters=uses)


def begin(engine: Engine, job: Job, slots: Sequence[int] | None = None) -> list[Drawing]:
    chosen = range(1, len(job.adapters) + 1) if slots is None else slots
    placed = engine.place_adapters(job.adapters, chosen, FLOAT32)
    [prompt] = engine.encode_prompts([PromptRequest(job.spec.prompt, job.adapters, placed)], FLOAT32)
    return engine.begin(job, prompt, placed)


def draw(engine: Engine, *jobs: Job) -> list[Drawing]:
    leases = SlotLeases(engine.adapter_slots)
    slots = [leases.grant(job, [use.sha256 for use in job.adapters]) for job in jobs]
    drawings = [drawing for job, at in zip(jobs, slots, strict=True) for drawing in begin(engine, job, at)]
    while not drawings[0].is_done:
        drawings = engine.step(drawings, FLOAT32)
    return drawings


def weights_hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(network.named_parameters()):
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def test_a_slot_draws_what_merged_weights_draw(engine: Engine, adapters: list[AdapterUse]) -> None:
    use = replace(adapters[1], scale=0.8)
    [ours] = draw(engine, lora_job(use))
    transformer = networks(engine).transformer
    for name, part in slot_parts(transformer).items():
        form = read_adapter(use.path).modules[f"transformer.{name}"]
        rows = part.layer.full_weight()[part.start : part.stop]
        rows += part.turn(0.8 * torch.from_numpy(dense_delta(form)), 0)
    [merged] = draw(engine, lora_job())
    assert (ours.latents - merged.latents).norm() <= 1e-4 * merged.latents.norm()


@pytest.mark.parametrize(
    "shapes",
    [
        {"lora_A": (4, 12), "lora_B": (20, 4), "dora_magnitude": (20,)},
        {"lokr_w1": (4, 3), "lokr_w2": (5, 4)},
        {"lokr_w1": (4, 3), "lokr_w2_a": (5, 2), "lokr_w2_b": (2, 4)},
    ],
)
@torch.inference_mode()
def test_a_file_of_another_form_acts_as_its_delta(shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    network, routing, plan = nn.ModuleDict({"a": nn.Linear(12, 20)}), SlotRouting(CPU), SlotPlan(count=3)
    parts = {f"transformer.{name}": part for name, part in install_slots(network, routing, plan).items()}
    tensors = {f"transformer.a.{part}": torch.rand(shape) + 0.1 for part, shape in shapes.items()}
    use = write_canonical(tmp_path / "lora.safetensors", tensors, rank=4)
    layer, x = parts["transformer.a"].layer, torch.randn(2, 3, 12)
    delta = dense_delta(read_adapter(use.path).modules["transformer.a"], layer.full_weight().numpy())
    AdapterSlots(parts, routing, plan, 1 << 20).load(2, use)
    with routing.using([(SlotUse(2, use.scale),)] * 2):
        ours = layer(x)
    merged = layer.full_weight() + torch.from_numpy(delta)
    assert torch.allclose(ours, x @ merged.T + layer.base.bias, rtol=1e-4, atol=1e-5)


def test_base_weights_are_bit_identical_after_many_loras(engine: Engine, adapters: list[AdapterUse]) -> None:
    before = weights_hash(networks(engine).transformer)
    for use in adapters * 2:
        draw(engine, lora_job(use))
    assert weights_hash(networks(engine).transformer) == before


def test_scale_zero_equals_no_lora(engine: Engine, adapters: list[AdapterUse]) -> None:
    [zero], [none] = draw(engine, lora_job(replace(adapters[0], scale=0.0))), draw(engine, lora_job())
    assert torch.equal(zero.latents, none.latents)


def test_a_lora_changes_the_picture(engine: Engine, adapters: list[AdapterUse]) -> None:
    [drawn], [none] = draw(engine, lora_job(adapters[0])), draw(engine, lora_job())
    assert (drawn.latents - none.latents).norm() > 0.01 * none.latents.norm()


def test_two_loras_together_differ_from_either(engine: Engine, adapters: list[AdapterUse]) -> None:
    [both], [first] = draw(engine, lora_job(adapters[0], adapters[2])), draw(engine, lora_job(adapters[0]))
    assert not torch.allclose(both.latents, first.latents)


def test_a_mixed_batch_draws_what_each_draws_alone(mini: ModelFolder, tmp_path: Path) -> None:
    engine = Engine(mini, CPU)
    uses = random_adapters(tmp_path, networks(engine).transformer, ranks=[4, 8, 16, 16])
    jobs = [lora_job(*[use] * bool(i % 3), seed=i) for i, use in enumerate(uses * 2)]
    together = draw(engine, *jobs)
    for job, mixed in zip(jobs, together, strict=True):
        [alone] = draw(engine, job)
        [again] = draw(engine, job)
        assert torch.equal(alone.latents, again.latents)
        assert psnr(*engine.decode([mixed], FLOAT32), *engine.decode([alone], FLOAT32)) >= 50


def test_a_lora_in_another_slot_is_not_disturbed(engine: Engine, adapters: list[AdapterUse]) -> None:
    [held] = begin(engine, lora_job(adapters[0]), [3])
    for use in adapters[1:] * 2:
        draw(engine, lora_job(use))
    [ours] = engine.step(engine.step([held], FLOAT32), FLOAT32)
    [alone] = draw(engine, lora_job(adapters[0]))
    assert torch.equal(ours.latents, alone.latents)


def test_a_lora_that_is_in_its_slot_already_is_not_loaded_again(
    engine: Engine, adapters: list[AdapterUse], tmp_path: Path
) -> None:
    engine.place_adapters(adapters[:1], [1], FLOAT32)
    gone = replace(adapters[0], path=tmp_path / "gone.safetensors")
    assert engine.place_adapters([gone], [1], FLOAT32)[0].slot == 1


def test_a_damaged_file_is_refused_and_its_slot_draws_no_lora(
    engine: Engine, adapters: list[AdapterUse], tmp_path: Path
) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"not a file of tensors")
    bad = AdapterUse("bad", "bad", tmp_path / "bad.safetensors", 1.0)
    engine.place_adapters(adapters[:1], [1], FLOAT32)
    for _ in range(3):
        with pytest.raises(AdapterError):
            engine.place_adapters([bad], [1], FLOAT32)
    [prompt] = engine.encode_prompts([PromptRequest("red apple")], FLOAT32)
    [emptied] = engine.step(engine.begin(lora_job(), prompt, (SlotUse(1, 1.0),)), FLOAT32)
    [none] = engine.step(engine.begin(lora_job(), prompt), FLOAT32)
    assert torch.equal(emptied.latents, none.latents)


def test_memory_stays_within_its_limit(tmp_path: Path) -> None:
    network, routing = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64)}), SlotRouting(CPU)
    uses = random_adapters(tmp_path, network, ranks=[4] * 40)
    parts = {f"transformer.{name}": part for name, part in install_slots(network, routing, SlotPlan(count=3)).items()}
    slots = AdapterSlots(parts, routing, SlotPlan(count=3), max_bytes=40_000)
    for index, use in enumerate(uses):
        slots.load(1 + index % 2, use)
        assert slots.memory.nbytes <= 40_000


def test_text_side_loras_change_the_prompt_and_its_cache_key(engine: Engine, tmp_path: Path) -> None:
    use = random_adapter(tmp_path / "te.safetensors", networks(engine).t5, component="text_encoder_2", strength=3.0)
    weak = replace(use, scale=0.5)
    prompts = []
    for job in (lora_job(), lora_job(use), lora_job(weak)):
        [drawing] = begin(engine, job)
        prompts.append(drawing.prompt.states)
    assert not torch.allclose(prompts[0], prompts[1])
    assert not torch.allclose(prompts[1], prompts[2])


def test_different_loras_prompts_steps_and_seeds_share_one_step(engine: Engine, adapters: list[AdapterUse]) -> None:
    first = begin(engine, lora_job(adapters[0], seed=1, steps=4))
    first = engine.step(first, FLOAT32)
    second = begin(engine, lora_job(adapters[1], seed=2, steps=2), [2])
    mixed = denoise_steps(engine, [*first, *second])
    apart = [*denoise_steps(engine, first), *denoise_steps(engine, second)]
    for ours, alone in zip(mixed, apart, strict=True):
        assert torch.allclose(ours.latents, alone.latents, rtol=1e-4, atol=1e-5)


def denoise_steps(engine: Engine, drawings: list[Drawing]) -> list[Drawing]:
    return engine.step(drawings, FLOAT32)
