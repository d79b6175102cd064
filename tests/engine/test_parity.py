"""In float32 and without LoRA, our loop draws what diffusers' own pipeline draws."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from pictures import psnr
from schnell.engine.denoise import begin_drawing, denoise_step
from schnell.engine.device import FLOAT32
from schnell.engine.loading import load_networks
from schnell.engine.pictures import decode_latents
from schnell.engine.text import TextEncoder
from schnell.models.folder import ModelFolder, open_model_folder
from schnell.spec import Size

CPU = torch.device("cpu")


def draw_ours(folder: ModelFolder, prompt: str, seed: int, steps: int, size: Size) -> Image.Image:
    networks = load_networks(folder.path, FLOAT32, CPU)
    text = TextEncoder(folder.path, folder.sequence_length, networks.clip, networks.t5)
    drawing = begin_drawing(text.encode([prompt])[0], seed, steps, folder.token_grid(size))
    for _ in range(steps):
        [drawing] = denoise_step(networks.transformer, [drawing])
    return decode_latents(networks.vae, [drawing])[0]


def draw_stock(folder: ModelFolder, prompt: str, seed: int, steps: int, size: Size) -> Image.Image:
    pipeline = FluxPipeline.from_pretrained(folder.path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    picture: Image.Image = pipeline(
        prompt,
        width=size.width // folder.draw_scale,
        height=size.height // folder.draw_scale,
        num_inference_steps=steps,
        guidance_scale=0.0,
        max_sequence_length=folder.sequence_length,
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]
    return picture


@pytest.mark.parametrize(("seed", "steps", "size"), [(7, 4, Size(1024, 1024)), (0, 1, Size(1344, 768))])
def test_embedded_model_draws_what_the_stock_pipeline_draws(
    mini: ModelFolder, seed: int, steps: int, size: Size
) -> None:
    prompt = "red apple on a blue background"
    ours, stock = draw_ours(mini, prompt, seed, steps, size), draw_stock(mini, prompt, seed, steps, size)
    assert ours.size == stock.size
    assert psnr(ours, stock) >= 60


def test_a_random_model_of_another_width_draws_what_the_stock_pipeline_draws(random_flux: Path) -> None:
    folder = open_model_folder(random_flux)
    size = Size(256, 288)
    ours, stock = draw_ours(folder, "green tree", 3, 2, size), draw_stock(folder, "green tree", 3, 2, size)
    assert ours.size == stock.size
    assert psnr(ours, stock) >= 60
