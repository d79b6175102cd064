"""Plans for FLUX.1 [schnell]'s true shapes: no weights are needed to know what it takes."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from schnell.engine.memory_plan import MemoryPlan, Target, Wishes, describe, make_plan, plan_for
from schnell.engine.memory_sums import Form, streamed_blocks
from schnell.engine.network_sizes import FLUX_SCHNELL, read_network_sizes
from schnell.engine.text_networks import ClipText, T5Encoder
from schnell.errors import ModelTooLargeError
from schnell.models.folder import ModelFolder, open_model_folder, read_json

GB = 10**9
HOST = 64 * GB


def card(memory: float, quantized: str | None = "float8", host: int = HOST) -> Target:
    return Target("cuda", f"a card of {memory} GB", int(memory * GB), host, quantized)  # type: ignore[arg-type]


def cpu(memory: float, fast: str = "bfloat16", exact: str = "float32") -> Target:
    return Target("cpu", "the CPU", int(memory * GB), int(memory * GB), None, fast, exact)


def flux(target: Target, **wishes: object) -> MemoryPlan:
    return make_plan(FLUX_SCHNELL, target, Wishes(**wishes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Class:
    """A class of cards and what a plan for it should say; `slots` are LoRA slots and their rank."""

    gb: int
    multiplies: str
    fast: str
    exact: str | None
    text: str | None
    text_place: str
    slots: tuple[int, int]
    streamed: int = 0


CLASSES = [
    Class(141, "float8", "float8", "bfloat16", None, "device", (16, 128)),
    Class(80, "float8", "float8", "bfloat16", None, "device", (16, 64)),
    Class(80, "int8", "int8", "bfloat16", None, "device", (16, 64)),
    Class(48, "float8", "float8", None, None, "device", (8, 64)),
    Class(32, "float8", "float8", None, "int8_weights", "device", (8, 32)),
    Class(24, "float8", "float8", None, "int8_weights", "streamed", (7, 32)),
    Class(24, "int8", "int8", None, "int8_weights", "streamed", (7, 32)),
    Class(16, "float8", "int4", None, "int8_weights", "streamed", (4, 32)),
    Class(12, "int8", "int4", None, "int8_weights", "streamed", (4, 16), streamed=14),
]


@pytest.mark.parametrize("each", CLASSES, ids=lambda each: f"{each.gb} GB, {each.multiplies}")
def test_every_class_of_cards_has_a_plan_within_its_memory_less_a_tenth(each: Class) -> None:
    plan = flux(card(each.gb, each.multiplies))
    form = plan.form
    assert plan.peak <= 0.9 * each.gb * GB
    assert (form.precision, form.exact, form.text, form.text_place) == (
        each.fast,
        each.exact,
        each.text,
        each.text_place,
    )
    assert (form.adapter_slots, form.adapter_rank) == each.slots
    assert form.streamed == each.streamed
    assert form.precision_for(go_fast=True).name == each.fast
    assert form.precision_for(go_fast=False).name == (each.exact or each.fast)


@settings(max_examples=40, deadline=None)
@given(st.floats(5.5, 200), st.sampled_from(["float8", "int8", None]))
def test_whatever_the_card_the_peak_fits(gb: float, quantized: str | None) -> None:
    plan = flux(card(gb, quantized))
    assert plan.peak <= 0.9 * gb * GB
    assert plan.host_peak <= HOST


def test_more_memory_never_means_fewer_loras_or_coarser_weights() -> None:
    plans = [flux(card(gb)).form for gb in (6, 8, 10, 12, 16, 20, 24, 32, 48, 80, 141)]
    order = ["int4", "float8"]
    for small, large in pairwise(plans):
        assert order.index(small.precision) <= order.index(large.precision)
        assert small.adapter_slots * small.adapter_rank <= large.adapter_slots * large.adapter_rank
        assert small.streamed >= large.streamed


def test_the_sums_are_those_of_the_true_shapes() -> None:
    # computed on meta tensors: transformer 23.78 GB, T5 9.52, CLIP 0.25, autoencoder 0.17; slots of rank 128, 23.6
    sums = {each.name: each.device / GB for each in plan_for(FLUX_SCHNELL, cpu(200), _plain_form()).shares}
    transformer = sums["transformer's blocks, bfloat16"] + sums["its embedders and last layer"]
    assert transformer == pytest.approx(23.78, abs=0.005)
    assert sums["T5, bfloat16"] == pytest.approx(9.52, abs=0.005)
    assert sums["CLIP"] == pytest.approx(0.25, abs=0.005)
    assert sums["autoencoder"] == pytest.approx(0.17, abs=0.005)


def _plain_form() -> Form:
    return replace(flux(card(141)).form, precision="bfloat16", exact=None)


def numbers_of(network: nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())


def test_formulas_count_what_the_networks_hold(mini: ModelFolder, random_flux: Path) -> None:
    from diffusers import AutoencoderKL, FluxTransformer2DModel

    parts = ("transformer", "text_encoder_2", "text_encoder", "vae")
    for path in (mini.path, random_flux):
        folder = open_model_folder(path)
        sizes = read_network_sizes(folder)
        configs = {part: read_json(folder.path / part / "config.json") for part in parts}
        with torch.device("meta"):
            transformer = FluxTransformer2DModel.from_config(configs["transformer"])
            vae = AutoencoderKL.from_config(configs["vae"])
            text = [T5Encoder(configs["text_encoder_2"]), ClipText(configs["text_encoder"])]
        assert sizes.transformer == numbers_of(transformer)
        assert sizes.vae == numbers_of(vae)
        assert sizes.text == sum(map(numbers_of, text))
        drawing = (folder.sequence_length, folder.draw_scale, folder.pixels_per_token)
        assert (sizes.text_tokens, sizes.draw_scale, sizes.pixels_per_token) == drawing


def test_formulas_count_what_flux_itself_holds() -> None:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=False)
    assert FLUX_SCHNELL.transformer == numbers_of(transformer)
    layers = [each for each in transformer.modules() if isinstance(each, nn.Linear)]
    ranks = sum(each.in_features + each.out_features for each in layers)
    sorts = FLUX_SCHNELL.block_sorts
    counted = sum(sort.count * each.rank_numbers for sort in sorts for each in (*sort.layers, *sort.modulation))
    assert counted + sum(each.rank_numbers for each in FLUX_SCHNELL.outer) == ranks


def test_a_cpu_needs_34_gb_of_weights_and_says_so() -> None:
    plan = flux(cpu(64))
    assert plan.form.precision == "bfloat16"
    assert plan.form.exact is None
    weights = sum(each.device for each in plan.shares[:5])
    assert weights == pytest.approx(33.7 * GB, abs=0.1 * GB)
    with pytest.raises(ModelTooLargeError, match=r"needs 4\d\.\d\d GB of the CPU's memory, where 32.00 GB are free"):
        flux(cpu(32))
    both = flux(cpu(256))
    assert (both.form.precision, both.form.exact) == ("bfloat16", "float32")


def test_the_embedded_model_runs_as_it_is_on_a_laptop_and_fits_into_a_gigabyte(mini: ModelFolder) -> None:
    form = make_plan(read_network_sizes(mini), cpu(6)).form
    assert (form.precision, form.exact, form.text_place) == ("bfloat16", "float32", "device")
    assert (form.adapter_slots, form.adapter_rank) == (16, 128)
    assert make_plan(read_network_sizes(mini), cpu(1)).peak <= 0.9 * GB


def test_a_card_that_is_too_small_is_refused_with_both_numbers_and_what_would_do() -> None:
    with pytest.raises(ModelTooLargeError) as refused:
        flux(card(4))
    assert "of a card of 4 GB's memory, where 4.00 GB are free" in refused.value.message
    assert "SCHNELL_DEVICE=cpu" in refused.value.message


def test_host_memory_counts_where_weights_wait_in_it() -> None:
    with pytest.raises(ModelTooLargeError, match=r"of the host's, where 4\.00 GB are free"):
        flux(card(12, host=4 * GB))


def test_a_setting_that_stands_in_the_way_is_named() -> None:
    with pytest.raises(ModelTooLargeError, match="without SCHNELL_LORA_RANK=128 it fits"):
        flux(card(12), lora_rank=128, lora_slots=4)
    with pytest.raises(ModelTooLargeError, match="without SCHNELL_OFFLOAD=none it fits"):
        flux(card(12), offload="none")


def test_every_setting_reaches_the_plan() -> None:
    plan = flux(card(80), precision="int4", lora_slots=3, lora_rank=8, text_encoders="int4", batch_rows=2)
    form = plan.form
    assert (form.precision, form.exact, form.adapter_slots, form.adapter_rank) == ("int4", None, 3, 8)
    assert (form.text, form.text_place, form.rows) == ("int4", "device", 2)
    assert flux(card(80), text_encoders="cpu").form.text_place == "cpu"
    assert flux(card(80), offload="text").form.text_place == "streamed"
    assert flux(card(80), offload="blocks").form.streamed == 1
    assert flux(card(80), decode="tiles").form.decodes_in_tiles(512 * 512)
    assert not flux(card(12), decode="whole").form.decodes_in_tiles(1440 * 1440)
    # the largest networks in bfloat16 run on any card whose host has room for them
    assert flux(card(24), precision="bfloat16").form.streamed > 0


def test_blocks_that_wait_are_spread_evenly() -> None:
    form = flux(card(12)).form
    waiting = streamed_blocks(replace(form, streamed=14), 57)
    assert len(waiting) == 14
    assert {second - first for first, second in pairwise(waiting)} <= {4, 5}
    assert streamed_blocks(replace(form, streamed=57), 57) == tuple(range(57))


def test_a_plan_is_told_with_its_sums() -> None:
    plan = flux(card(24))
    text = "\n".join(describe(plan))
    assert text.startswith("a card of 24 GB: float8")
    assert "7 LoRAs at once, up to rank 32" in text
    assert f"at most {plan.peak / GB:.2f} GB of 24.00 GB" in text
    with_both = "\n".join(describe(flux(card(80))))
    assert "float8 with go_fast, bfloat16 without" in with_both
