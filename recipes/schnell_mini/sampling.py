"""Pictures from prompts, with the engine's own denoising on networks that are still being trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from schnell.engine.denoise import (
    Drawing,
    denoise_step,
    initial_noise,
    noise_levels,
    unpack_latents,
)
from schnell.engine.flux import VelocityNetwork
from schnell.engine.text import PromptEmbedding
from schnell.spec import Size
from schnell_mini.networks import as_velocity
from schnell_mini.text_models import TextModels


@dataclass(frozen=True)
class MiniPipeline:
    """All networks that turn a prompt into a picture."""

    text: TextModels
    transformer: FluxTransformer2DModel
    vae: AutoencoderKL

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return torch.device(self.transformer.device)


def load_pipeline(folder: Path, device: str = "cpu") -> MiniPipeline:
    """Load a stock diffusers folder in float32."""
    text = TextModels(
        CLIPTextModel.from_pretrained(folder / "text_encoder").float().to(device).eval(),
        T5EncoderModel.from_pretrained(folder / "text_encoder_2").float().to(device).eval(),
        (AutoTokenizer.from_pretrained(folder / "tokenizer"), AutoTokenizer.from_pretrained(folder / "tokenizer_2")),
    )
    transformer = FluxTransformer2DModel.from_pretrained(folder / "transformer").float()
    vae = AutoencoderKL.from_pretrained(folder / "vae").float()
    return MiniPipeline(text, transformer.to(device).eval(), vae.to(device).eval())


def start_drawings(
    prompts: Sequence[PromptEmbedding], latents: Tensor, sigmas: Sequence[tuple[float, ...]], grid: Size
) -> list[Drawing]:
    """The engine's drawings for packed latents `[B, T, 64]`, each with the noise levels that it passes."""
    rows = zip(prompts, latents, sigmas, strict=True)
    return [Drawing(latents=one, sigmas=levels, step=0, grid=grid, prompt=prompt) for prompt, one, levels in rows]


def denoise(
    network: VelocityNetwork, prompts: Sequence[PromptEmbedding], noise: Tensor, grid: Size, steps: int
) -> Tensor:
    """Packed noise to packed latents `[B, T, 64]` in so many Euler steps."""
    drawings = start_drawings(prompts, noise, [noise_levels(steps)] * len(noise), grid)
    for _ in range(steps):
        drawings = denoise_step(network, drawings)
    # stacked outside of inference mode: an ordinary tensor, that the decoder may be trained on
    return torch.stack([drawing.latents for drawing in drawings])


def decode_pixels(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents `[B, 16, h, w]` to what the decoder makes of them, `[B, 3, H, W]` around -1..1."""
    pixels: Tensor = vae.decode(latents / vae.config["scaling_factor"] + vae.config["shift_factor"]).sample
    return pixels


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents `[B, 16, h, w]` to pictures `[B, 3, H, W]` in 0..1 on the CPU."""
    return ((decode_pixels(vae, latents).float().cpu() + 1) / 2).clamp(0, 1)


def draw_pictures(
    pipeline: MiniPipeline, prompts: Sequence[str], seeds: Sequence[int], size: tuple[int, int], steps: int
) -> Tensor:
    """Pictures `[B, 3, H, W]` in 0..1 for prompts and seeds; `size` is (height, width) in drawn pixels.

    A size that is no multiple of a token is drawn on the next larger grid and cut at the right and below.
    """
    # the autoencoder halves the picture between its levels, and a token holds two by two latents
    pixels = 2 ** len(pipeline.vae.config["block_out_channels"])
    height, width = (-(-side // pixels) for side in size)
    grid = Size(width, height)
    noise = torch.stack([initial_noise(seed, grid) for seed in seeds]).to(pipeline.device)
    latents = denoise(as_velocity(pipeline.transformer), pipeline.text.encode(prompts), noise, grid, steps)
    return decode(pipeline.vae, unpack_latents(latents, grid))[:, :, : size[0], : size[1]]
