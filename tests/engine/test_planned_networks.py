"""Engines in every form that a plan may choose, with the embedded model on a CPU."""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import make_job
from pictures import psnr
from schnell.adapters import convert_adapter, read_model_shape
from schnell.engine.device import Precision
from schnell.engine.engine import Engine, generate
from schnell.engine.loaded_model import PromptRequest
from schnell.engine.memory_sums import LARGEST_PIXELS, Form
from schnell.engine.quantized import Int4Linear, QuantizedLinear, TwoPathLinear
from schnell.engine.quantized_files import QuantizedFiles
from schnell.models.folder import ModelFolder, embedded_home
from schnell.spec import AdapterUse, Job, Size

CPU = torch.device("cpu")
PLAIN = Form("bfloat16", None, None, None, "device", 4, 48, rows=4, whole_pixels=LARGEST_PIXELS)
FORMS = {
    "bfloat16": PLAIN,
    "float8": replace(PLAIN, precision="float8"),
    "float8, modulation in 8 bits": replace(PLAIN, precision="float8", modulation="int8_weights"),
    "int8": replace(PLAIN, precision="int8"),
    "int4": replace(PLAIN, precision="int4", modulation="int8_weights", text="int8_weights"),
}
SMALLEST = {"bfloat16": 99, "float8": 28, "float8, modulation in 8 bits": 28, "int8": 28, "int4": 22}
PROMPTS = ("red apple on a blue background", "rocket", "panda", "evergreen tree on a yellow background", "pizza")


def draw(engine: Engine, jobs: Sequence[Job], *, go_fast: bool = True) -> list[Image.Image]:
    precision = engine.precision_for(go_fast=go_fast)
    prompts = engine.encode_prompts([PromptRequest(job.spec.prompt) for job in jobs], precision)
    drawings = [drawing for job, prompt in zip(jobs, prompts, strict=True) for drawing in engine.begin(job, prompt)]
    for _ in range(4):
        drawings = engine.step(drawings, precision)
    return [picture for drawing in drawings for picture in engine.decode([drawing], precision)]


def jobs() -> list[Job]:
    return [make_job(prompt, seed=7 + index) for index, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def reference(mini: ModelFolder) -> list[Image.Image]:
    return draw(Engine(mini, CPU, form=PLAIN), jobs())


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


@pytest.mark.parametrize("name", FORMS)
def test_every_form_draws_nearly_what_bfloat16_draws(
    name: str, mini: ModelFolder, reference: list[Image.Image]
) -> None:
    found = draw(Engine(mini, CPU, form=FORMS[name]), jobs())
    alike = [psnr(*pair) for pair in zip(found, reference, strict=True)]
    assert median(alike) >= SMALLEST[name], alike


def test_layers_that_a_model_folder_names_stay_exact(mini: ModelFolder) -> None:
    engine = Engine(mini, CPU, form=FORMS["float8"])
    network = engine.network("transformer", Precision("float8"))
    quantized = [path for path, each in network.named_modules() if isinstance(each, QuantizedLinear)]
    assert quantized
    assert all(path.startswith(tuple(f"single_blocks.{index}." for index in range(5, 12))) for path in quantized)
    assert not any("modulation" in path for path in quantized)


def test_one_network_draws_with_and_without_go_fast(mini: ModelFolder, reference: list[Image.Image]) -> None:
    engine = Engine(mini, CPU, form=replace(PLAIN, precision="float8", exact="bfloat16"))
    fast, exact = draw(engine, jobs()), draw(engine, jobs(), go_fast=False)
    assert all(psnr(*pair) > 90 for pair in zip(exact, reference, strict=True))
    assert any(psnr(*pair) < 60 for pair in zip(fast, reference, strict=True))
    networks = {id(engine.network("transformer", Precision(name))) for name in ("float8", "bfloat16")}
    assert len(networks) == 1
    layers = engine.network("transformer", Precision("float8")).modules()
    assert any(isinstance(each, TwoPathLinear) for each in layers)


def test_the_receipt_names_what_ran_and_a_warning_says_that_go_fast_could_not_be_off(mini: ModelFolder) -> None:
    engine = Engine(mini, CPU, form=FORMS["int4"])
    outcome = generate(engine, make_job(go_fast=False, safety_checker=False), lambda _: None)
    assert outcome.images[0].receipt["precision"] == "int4"
    assert "this server has room for int4 only" in outcome.warnings[0]
    outcome = generate(engine, make_job(safety_checker=False), lambda _: None)
    assert outcome.warnings == ()


@pytest.mark.parametrize("place", ["streamed", "cpu"])
def test_t5_draws_the_same_from_host_memory(place: str, mini: ModelFolder, reference: list[Image.Image]) -> None:
    engine = Engine(mini, CPU, form=replace(PLAIN, text_place=place))  # type: ignore[arg-type]
    assert all(psnr(*pair) > 90 for pair in zip(draw(engine, jobs()), reference, strict=True))


@pytest.mark.parametrize("streamed", [9, 14])
def test_blocks_that_wait_in_host_memory_draw_the_same(streamed: int, mini: ModelFolder) -> None:
    form = FORMS["float8"]
    plain, waiting = (Engine(mini, CPU, form=each) for each in (form, replace(form, streamed=streamed)))
    pairs = zip(draw(plain, jobs()[:2]), draw(waiting, jobs()[:2]), strict=True)
    assert all(first.tobytes() == second.tobytes() for first, second in pairs)


@pytest.fixture
def blueprint(mini: ModelFolder, tmp_path: Path) -> AdapterUse:
    """A bundled LoRA, trained on the last single block."""
    file = embedded_home() / "loras" / "blueprint.safetensors"
    converted = convert_adapter(file, tmp_path, shape=read_model_shape(mini.path))
    return AdapterUse("blueprint", converted.sha256, converted.path, 1.0)


def test_loras_act_on_quantized_and_waiting_layers(mini: ModelFolder, blueprint: AdapterUse) -> None:
    form = replace(FORMS["int8"], streamed=14)
    job = replace(make_job("red apple", safety_checker=False), adapters=(blueprint,))
    with_lora, plain = (
        generate(Engine(mini, CPU, form=each), job, lambda _: None).images[0].data for each in (form, PLAIN)
    )
    without = generate(Engine(mini, CPU, form=form), make_job("red apple", safety_checker=False), lambda _: None)
    nearness = [psnr(open_picture(with_lora), open_picture(each)) for each in (plain, without.images[0].data)]
    assert nearness[0] > nearness[1] + 5


def open_picture(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


def test_a_second_start_reads_what_the_first_one_quantized(
    mini: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, form = QuantizedFiles(tmp_path), FORMS["int4"]
    first = draw(Engine(mini, CPU, form=form, files=files), jobs()[:2])
    assert len(list(tmp_path.iterdir())) == 2  # the transformer and T5

    def refuse(*_: object) -> None:
        raise AssertionError("quantized again")

    monkeypatch.setattr(Int4Linear, "quantize", refuse)
    second = draw(Engine(mini, CPU, form=form, files=files), jobs()[:2])
    assert [each.tobytes() for each in first] == [each.tobytes() for each in second]


def test_kept_files_that_are_damaged_are_made_again(mini: ModelFolder, tmp_path: Path) -> None:
    files, form = QuantizedFiles(tmp_path), FORMS["int4"]
    first = draw(Engine(mini, CPU, form=form, files=files), jobs()[:1])
    for file in tmp_path.glob("*/*.safetensors"):
        file.write_bytes(file.read_bytes()[:1000])
    again = draw(Engine(mini, CPU, form=form, files=files), jobs()[:1])
    assert first[0].tobytes() == again[0].tobytes()
    assert all(file.stat().st_size > 1000 for file in tmp_path.glob("*/*.safetensors"))


def test_another_form_or_other_weights_are_other_files(tmp_path: Path) -> None:
    files = QuantizedFiles(tmp_path)
    keys = {
        files.key(sha, description, dtype)
        for sha in ("a", "b")
        for description in ("int4 None", "int8 None")
        for dtype in (torch.bfloat16, torch.float32)
    }
    assert len(keys) == 8


def test_a_disk_that_takes_nothing_costs_nothing_but_the_second_start(mini: ModelFolder, tmp_path: Path) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("not a folder")
    engine = Engine(mini, CPU, form=FORMS["int4"], files=QuantizedFiles(blocked))
    assert draw(engine, jobs()[:1])


def test_rows_shrink_as_pictures_grow_but_one_is_always_possible(mini: ModelFolder) -> None:
    engine = Engine(mini, CPU, form=PLAIN)
    tokens = [side * side for side in (8, 16, 22)]
    assert engine.most_rows(tokens[1]) == PLAIN.rows == 4
    assert engine.most_rows(tokens[0]) > 4 > engine.most_rows(tokens[2])
    assert engine.most_rows(10**9) == 1


def test_pictures_larger_than_the_plan_decodes_whole_are_decoded_in_tiles(mini: ModelFolder) -> None:
    engine = Engine(mini, CPU, form=replace(PLAIN, whole_pixels=256 * 256))
    assert not engine.decodes_in_tiles(Size(16, 16))
    assert engine.decodes_in_tiles(Size(17, 16))
    assert not Engine(mini, CPU).decodes_in_tiles(Size(90, 90))
