"""A LoRA file drawn through conversion and slots is the picture that diffusers draws from the same file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors.numpy import save_file

from conftest import make_job
from pictures import psnr
from schnell.adapters import convert_adapter, read_model_shape
from schnell.engine.device import FLOAT32
from schnell.engine.engine import Engine
from schnell.engine.loaded_model import PromptRequest
from schnell.models.folder import ModelFolder
from schnell.spec import AdapterUse, Size

PROMPT = "red apple on a blue background"
SIZE = Size(256, 256)
_PEFT = (".lora_A.weight", ".lora_B.weight")
_KOHYA = (".lora_down.weight", ".lora_up.weight")
Tensors = dict[str, npt.NDArray[Any]]


def _low_rank(
    tensors: Tensors, stem: str, size: tuple[int, int], parts: tuple[str, str], alpha: float | None = None
) -> None:
    out, into = size
    rng = np.random.default_rng(len(tensors))
    tensors[stem + parts[0]] = rng.standard_normal((4, into), np.float32) * np.float32(into**-0.5)
    tensors[stem + parts[1]] = rng.standard_normal((out, 4), np.float32) * np.float32(0.6)
    if alpha is not None:
        tensors[f"{stem}.alpha"] = np.array(alpha, np.float32)


def diffusers_file(*, magnitudes: bool = False) -> Tensors:
    tensors: Tensors = {}
    layers = {"attn.to_q": (256, 256), "attn.to_out.0": (256, 256), "ff.net.0.proj": (1024, 256)}
    for block in range(2):
        for layer, (out, into) in layers.items():
            stem = f"transformer.transformer_blocks.{block}.{layer}"
            _low_rank(tensors, stem, (out, into), _PEFT)
            if magnitudes:
                rng = np.random.default_rng(block)
                tensors[f"{stem}.lora_magnitude_vector"] = rng.uniform(0.5, 1.5, out).astype(np.float32)
    stem = "transformer.single_transformer_blocks.2.proj_out"
    _low_rank(tensors, stem, (256, 1280), _PEFT)
    if magnitudes:
        tensors[f"{stem}.lora_magnitude_vector"] = np.linspace(0.5, 1.5, 256, dtype=np.float32)
    return tensors


def kohya_file() -> Tensors:
    tensors: Tensors = {}
    for block in range(2):
        for stream in ("img", "txt"):
            _low_rank(tensors, f"lora_unet_double_blocks_{block}_{stream}_attn_qkv", (768, 256), _KOHYA, 2.0)
            _low_rank(tensors, f"lora_unet_double_blocks_{block}_{stream}_mlp_2", (256, 1024), _KOHYA, 2.0)
    for block in range(6):
        _low_rank(tensors, f"lora_unet_single_blocks_{block}_linear2", (256, 1280), _KOHYA, 2.0)
        _low_rank(tensors, f"lora_unet_single_blocks_{block}_modulation_lin", (768, 256), _KOHYA, 2.0)
    return tensors


FILES = {"diffusers": diffusers_file(), "diffusers DoRA": diffusers_file(magnitudes=True), "Kohya": kohya_file()}


def draw_ours(folder: ModelFolder, source: Path, cache: Path) -> Image.Image:
    engine = Engine(folder, torch.device("cpu"))
    converted = convert_adapter(source, cache, shape=read_model_shape(folder.path))
    use = AdapterUse("lora", converted.sha256, converted.path, scale=1.0)
    job = replace(make_job(PROMPT, seed=5, steps=2, size=SIZE, go_fast=False), adapters=(use,))
    slots = engine.place_adapters(job.adapters, range(1, len(job.adapters) + 1), FLOAT32)
    prompts = engine.encode_prompts([PromptRequest(PROMPT, job.adapters, slots)], FLOAT32)
    drawings = engine.begin(job, prompts[0], slots)
    while not drawings[0].is_done:
        drawings = engine.step(drawings, FLOAT32)
    return engine.decode(drawings, FLOAT32)[0]


@pytest.fixture(scope="module")
def stock(mini: ModelFolder) -> Any:
    pipeline = FluxPipeline.from_pretrained(mini.path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_stock(pipeline: Any, folder: ModelFolder) -> Image.Image:
    picture: Image.Image = pipeline(
        PROMPT,
        width=SIZE.width // folder.draw_scale,
        height=SIZE.height // folder.draw_scale,
        num_inference_steps=2,
        guidance_scale=0.0,
        max_sequence_length=folder.sequence_length,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]
    return picture


@pytest.mark.parametrize("layout", FILES)
def test_a_converted_file_draws_what_diffusers_draws(
    mini: ModelFolder, stock: Any, layout: str, tmp_path: Path
) -> None:
    source = tmp_path / "lora.safetensors"
    save_file(FILES[layout], source)
    plain = draw_stock(stock, mini)
    stock.load_lora_weights(tmp_path, weight_name=source.name)
    expected = draw_stock(stock, mini)
    stock.unload_lora_weights()
    assert psnr(draw_ours(mini, source, tmp_path / "cache"), expected) >= 55
    assert psnr(plain, expected) < 40
