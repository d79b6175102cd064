"""The whole recipe with a small network on eight pictures, in seconds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

from schnell.benchmarks.quantized_quality import FORMS
from schnell.errors import TrainingError
from schnell.models.catalogue import find_model
from schnell.models.folder import ModelFolder, open_model_folder
from schnell_mini.captions import COLOURS, IconLabel
from schnell_mini.data import Data, prepare_data, read_data, write_data
from schnell_mini.evaluation import evaluate, psnr
from schnell_mini.form_evaluation import evaluate_forms
from schnell_mini.loop import Show
from schnell_mini.networks import Shape
from schnell_mini.pictures import Icons
from schnell_mini.recipe import Plan, train_mini
from schnell_mini.sampling import draw_pictures, load_pipeline

TINY = Shape(single_blocks=7, t5_layers=1, clip_layers=1, clip_hidden=64, vae_channels=(8, 8, 8, 16), vocabulary=300)


def quiet(stage: str, done: float, note: str) -> None: ...


def silent(title: str, done: float) -> None: ...


def eight_icons() -> Icons:
    """Bars and blocks in eight colours."""
    pictures = torch.zeros(8, 4, 256, 256, dtype=torch.uint8)
    names = list(COLOURS)[3:11]
    for i, name in enumerate(names):
        area = pictures[i, :, 30 : 120 + 15 * i, 20 : 236 - 15 * i]
        area[:3] = (torch.tensor(COLOURS[name]) * 255).to(torch.uint8)[:, None, None]
        area[3] = 255
    words = ("block", "bar", "wall", "tower", "gate", "brick", "plank", "stone")
    return Icons(pictures, tuple(IconLabel(f"{n} {w}", (w, "shape")) for n, w in zip(names, words, strict=True)))


def small_data(work: Path, show: Show) -> Data:
    return Data(eight_icons(), (("boulder", 7), ("fence", 6)), (("a wall in the rain", 2),))


def tiny_plan(work: Path) -> Plan:
    return Plan(work, 60, torch.device("cpu"), quiet, shape=TINY, updates=2, captions=12, drawn=0.02)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("mini")
    train_mini(tiny_plan(work), small_data, resume=False)
    return work


def test_the_export_is_a_model_folder_of_ours(trained: Path) -> None:
    folder = open_model_folder(trained / "schnell-mini")
    assert (folder.draw_scale, folder.sequence_length, folder.pixels_per_token) == (4, 32, 16)
    last = TINY.single_blocks - 1
    assert folder.lora_layers == rf"single_transformer_blocks\.({last - 1}|{last})\.(proj_mlp|proj_out)"
    assert folder.noise_places
    assert folder.exact_layers == find_model("schnell-mini").exact_layers


def test_the_export_is_in_half_precision(trained: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(trained / "schnell-mini", torch_dtype=torch.float32)
    weights = trained / "schnell-mini/transformer/diffusion_pytorch_model.safetensors"
    parameters = sum(p.numel() for p in pipeline.transformer.parameters())
    assert weights.stat().st_size < 2.2 * parameters + 20_000


def test_stock_flux_pipeline_draws_the_same_picture(trained: Path) -> None:
    folder = trained / "schnell-mini"
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(
        "red block on a blue background",
        height=96,
        width=160,
        num_inference_steps=2,
        guidance_scale=0.0,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images
    ours = draw_pictures(load_pipeline(folder), ["red block on a blue background"], [3], (96, 160), 2)
    assert psnr(stock, ours) > 60


def test_a_second_run_does_not_overwrite_the_first_unasked(trained: Path) -> None:
    with pytest.raises(TrainingError, match="--resume"):
        train_mini(tiny_plan(trained), small_data, resume=False)


def test_resuming_redoes_only_what_is_missing(trained: Path) -> None:
    states = trained / "state"
    kept = {path: path.stat().st_mtime_ns for path in states.glob("*.pt") if path.stem != "decoder"}
    (states / "decoder.pt").unlink()
    (trained / "schnell-mini/schnell.json").unlink()
    train_mini(tiny_plan(trained), small_data, resume=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (states / "decoder.pt").exists()
    assert (trained / "schnell-mini/schnell.json").exists()


def test_training_can_start_from_a_model_folder(trained: Path, tmp_path: Path) -> None:
    plan = replace(tiny_plan(tmp_path), start=trained / "schnell-mini")
    folder = train_mini(plan, small_data, resume=False)
    assert not (tmp_path / "state/vae.pt").exists()
    assert open_model_folder(folder).sequence_length == 32


def test_the_evaluation_reports_every_figure(trained: Path) -> None:
    figures = evaluate(trained / "schnell-mini", eight_icons(), 2, "cpu", silent)
    assert figures.pictures == 2
    shares = [value for name, value in figures.to_json().items() if not name.endswith(("db", "pictures", "sharpness"))]
    assert all(0 <= value <= 1 for value in shares)
    assert len(figures.rows()) == 16


def test_icons_are_counted_in_every_form(mini: ModelFolder) -> None:
    figures = evaluate_forms(mini, eight_icons(), 2, silent)
    assert [each.form for each in figures] == ["bfloat16", *FORMS]
    assert all(0 <= each.named <= 1 for each in figures)
    assert figures[0].median_db == 100
    assert all(0 < each.lowest_db <= each.median_db < 100 for each in figures[1:])


def test_data_kept_in_the_work_folder_is_read_again(tmp_path: Path) -> None:
    data = small_data(tmp_path, quiet)
    write_data(data, tmp_path / "data.pt")
    again = prepare_data(tmp_path, quiet)
    assert again.icons.labels == data.icons.labels
    assert again.pairs == data.pairs
    assert torch.equal(again.icons.pictures, data.icons.pictures)
    kept = read_data(tmp_path / "data.pt")
    assert (kept.pairs, kept.sentences) == (data.pairs, data.sentences)
