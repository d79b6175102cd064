"""Pictures and captions as the transformer sees them: latents and text embeddings, computed once before training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from schnell.engine.denoise import pack_latents
from schnell.engine.text import PromptEmbedding, TextEncoder
from schnell.models.folder import ModelFolder
from schnell.spec import ASPECT_RATIOS, Size, resolve_size
from schnell.training.low_rank import BaseModel
from schnell.training.pictures import CaptionedPicture, open_picture
from schnell.training.plan import ProgressReport, TrainingPlan, TrainingProgress

_PROMPTS_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True)
class Bucket:
    """Pictures of one token grid: latents (pictures, tokens, channels), the captions of each as indices of
    `TrainingData.prompts`, and the bucket's share of all steps."""

    grid: Size
    latents: Tensor
    captions: tuple[tuple[int, ...], ...]
    share: float


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step is trained on: clean latents (batch, tokens, channels) and a prompt for each."""

    latents: Tensor
    prompts: tuple[PromptEmbedding, ...]
    grid: Size


@dataclass(frozen=True, slots=True)
class TrainingData:
    """All pictures and prompts, on the CPU."""

    buckets: tuple[Bucket, ...]
    prompts: tuple[PromptEmbedding, ...]
    truncated_captions: int

    def draw(self, size: int, generator: torch.Generator, device: torch.device) -> Batch:
        """Random pictures of a random bucket, each with one of its captions.

        `size` counts pictures of the smallest token grid; of larger ones there are fewer, for steps of equal cost.
        """
        shares = torch.tensor([bucket.share for bucket in self.buckets])
        bucket = self.buckets[int(torch.multinomial(shares, 1, generator=generator))]
        smallest = min(other.latents.shape[1] for other in self.buckets)
        count = max(1, round(size * smallest / bucket.latents.shape[1]))
        chosen = torch.randint(len(bucket.latents), (count,), generator=generator)
        prompts = [self._pick_prompt(bucket.captions[index], generator) for index in chosen.tolist()]
        return Batch(
            latents=bucket.latents[chosen].to(device),
            prompts=tuple(move_prompt(prompt, device) for prompt in prompts),
            grid=bucket.grid,
        )

    def _pick_prompt(self, captions: tuple[int, ...], generator: torch.Generator) -> PromptEmbedding:
        return self.prompts[captions[int(torch.randint(len(captions), (1,), generator=generator))]]


def prepare_data(
    pictures: Sequence[CaptionedPicture], base: BaseModel, plan: TrainingPlan, report: ProgressReport
) -> TrainingData:
    """Encode every caption and every picture. Each network is loaded when its turn comes, and let go after.

    Raises:
        TrainingError: a picture cannot be read.
    """
    captions = sorted({caption for picture in pictures for caption in picture.captions})
    numbers = {caption: number for number, caption in enumerate(captions)}
    report(TrainingProgress("captions", 0.0))
    prompts = embed_prompts(captions, base)
    report(TrainingProgress("captions", 1.0))
    encoded = _encode_pictures(pictures, base, [area for area, _ in plan.megapixels], report)
    buckets = (
        Bucket(
            grid=grid,
            latents=torch.stack([pair.latents for pair in pairs]),
            captions=tuple(tuple(numbers[caption] for caption in pair.picture.captions) for pair in pairs),
            share=dict(plan.megapixels)[area] * len(pairs) / len(pictures),
        )
        for (area, grid), pairs in encoded.items()
    )
    return TrainingData(tuple(buckets), tuple(prompts), sum(prompt.was_truncated for prompt in prompts))


def embed_prompts(prompts: Sequence[str], base: BaseModel) -> list[PromptEmbedding]:
    """Embeddings of prompts, on the CPU; the text encoders are loaded for it."""
    folder = base.folder
    encoder = TextEncoder(folder.path, folder.sequence_length, base.load("text_encoder"), base.load("text_encoder_2"))
    starts = range(0, len(prompts), _PROMPTS_AT_ONCE)
    embeddings = (e for start in starts for e in encoder.encode(prompts[start : start + _PROMPTS_AT_ONCE]))
    # clones made here are ordinary tensors, unlike those of inference mode: autograd may keep them
    return [PromptEmbedding(e.states.cpu().clone(), e.pooled.cpu().clone(), e.was_truncated) for e in embeddings]


def move_prompt(prompt: PromptEmbedding, device: torch.device) -> PromptEmbedding:
    """The same embedding on another device."""
    return PromptEmbedding(prompt.states.to(device), prompt.pooled.to(device), prompt.was_truncated)


@dataclass(frozen=True, slots=True)
class _EncodedPicture:
    picture: CaptionedPicture
    latents: Tensor


def _encode_pictures(
    pictures: Sequence[CaptionedPicture], base: BaseModel, areas: Sequence[str], report: ProgressReport
) -> dict[tuple[str, Size], list[_EncodedPicture]]:
    """Every picture at every area, by area and token grid."""
    vae = base.load("vae")
    encoded: dict[tuple[str, Size], list[_EncodedPicture]] = {}
    for number, picture in enumerate(pictures):
        report(TrainingProgress("pictures", number / len(pictures)))
        pixels = open_picture(picture.path)
        for area in areas:
            grid = nearest_grid(Size(*pixels.size), area, base.folder)
            latents = encode_picture(vae, pixels, grid, base.folder)
            encoded.setdefault((area, grid), []).append(_EncodedPicture(picture, latents))
    report(TrainingProgress("pictures", 1.0))
    return encoded


def nearest_grid(picture: Size, megapixels: str, folder: ModelFolder) -> Size:
    """The token grid of the aspect ratio, among those that users ask for, that loses least of the picture."""
    shape = picture.width / picture.height

    def loss(ratio: str) -> float:
        offered = ASPECT_RATIOS[ratio].width / ASPECT_RATIOS[ratio].height
        return max(shape / offered, offered / shape)

    return folder.token_grid(resolve_size(min(ASPECT_RATIOS, key=loss), megapixels))


@torch.no_grad()
def encode_picture(vae: Any, picture: Image.Image, grid: Size, folder: ModelFolder) -> Tensor:
    """(tokens, channels), float32 on the CPU: the picture, cut and resized to the grid, in FLUX's latent space."""
    side = folder.pixels_per_token
    fitted = ImageOps.fit(picture, (grid.width * side, grid.height * side), Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
    mean = vae.encode(values[None].to(vae.device, vae.dtype)).latent_dist.mode()[0].float()
    return pack_latents(((mean - vae.config.shift_factor) * vae.config.scaling_factor).cpu())
