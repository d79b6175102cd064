"""A small batched sampler over a diffusers folder: the same noise and steps as `FluxPipeline`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from schnell_mini.latents import pack, unpack
from schnell_mini.text_models import Conditions, TextModels, grid_positions, velocity

GRID = 16


@dataclass(frozen=True)
class Painter:
    """Everything that turns a prompt into a picture."""

    text: TextModels
    transformer: FluxTransformer2DModel
    vae: AutoencoderKL

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return torch.device(self.transformer.device)


def load_painter(folder: Path, device: str = "cpu") -> Painter:
    """Load a stock folder in fp32."""
    text = TextModels(
        CLIPTextModel.from_pretrained(folder / "text_encoder").float().to(device).eval(),
        T5EncoderModel.from_pretrained(folder / "text_encoder_2").float().to(device).eval(),
        (AutoTokenizer.from_pretrained(folder / "tokenizer"), AutoTokenizer.from_pretrained(folder / "tokenizer_2")),
    )
    transformer = FluxTransformer2DModel.from_pretrained(folder / "transformer").float()
    vae = AutoencoderKL.from_pretrained(folder / "vae").float()
    return Painter(text, transformer.to(device).eval(), vae.to(device).eval())


def start_noise(seeds: Sequence[int], height: int, width: int) -> Tensor:
    """Noise `[N, 16, height, width]`, one CPU generator per image, as `FluxPipeline` draws it."""
    shape = (1, 16, height, width)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


@torch.no_grad()
def flow(
    transformer: FluxTransformer2DModel, told: Conditions, tokens: Tensor, grid: tuple[int, int], steps: int
) -> Tensor:
    """Euler steps on sigmas 1 ... 1/n down to 0, from noise tokens `[N, T, 64]` to clean ones; `grid` in tokens."""
    positions = grid_positions(2 * grid[0], 2 * grid[1]).to(tokens.device)
    for step in range(steps):
        times = torch.full((len(tokens),), 1 - step / steps, device=tokens.device)
        tokens = tokens - velocity(transformer, tokens, told, times, positions) / steps
    return tokens


def denoise(painter: Painter, told: Conditions, noise: Tensor, steps: int) -> Tensor:
    """Clean latents `[N, 16, h, w]` from noise."""
    height, width = noise.shape[-2:]
    tokens = flow(painter.transformer, told, pack(noise).to(painter.device), (height // 2, width // 2), steps)
    return unpack(tokens, height, width)


@torch.no_grad()
def decode(painter: Painter, latents: Tensor) -> Tensor:
    """Latents to pictures `[N, 3, H, W]` in 0..1 on the CPU."""
    config = painter.vae.config
    scaled = latents / config["scaling_factor"] + config["shift_factor"]
    pixels: Tensor = painter.vae.decode(scaled).sample.float().cpu()
    return ((pixels + 1) / 2).clamp(0, 1)


def draw(painter: Painter, prompts: Sequence[str], seeds: Sequence[int], size: tuple[int, int], steps: int) -> Tensor:
    """Pictures `[N, 3, H, W]` in 0..1 for prompts and seeds; `size` is (height, width) in drawn pixels."""
    height, width = (2 * -(-side // GRID) for side in size)
    told = painter.text.encode(list(prompts))
    latents = denoise(painter, told, start_noise(seeds, height, width), steps)
    return decode(painter, latents)[:, :, : size[0], : size[1]]
