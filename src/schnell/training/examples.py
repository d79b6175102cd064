"""The training set as the transformer takes it: latents and text embeddings, computed once before training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from schnell.engine.autoencoder import Autoencoder
from schnell.engine.denoise import pack_latents
from schnell.engine.text import PromptEmbedding, TextEncoder
from schnell.models.folder import ModelFolder
from schnell.spec import ASPECT_RATIOS, Size, resolve_size
from schnell.training.lessons import Student
from schnell.training.low_rank import BaseModel
from schnell.training.noise import flow_loss
from schnell.training.pictures import CaptionedPicture, open_picture
from schnell.training.plan import ProgressReport, TrainingPlan, TrainingProgress

_PROMPTS_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True)
class Bucket:
    """The pictures that are trained at one token grid: latents (pictures, tokens, channels) and captions.

    `captions` has for each picture the indices of its captions in `TrainingData.prompts`. `share` is the part of all
    steps that this bucket is trained in.
    """

    grid: Size
    latents: Tensor
    captions: tuple[tuple[int, ...], ...]
    share: float


@dataclass(frozen=True, slots=True)
class Batch:
    """What one optimizer step is trained on: clean latents (batch, tokens, channels) and a prompt for each."""

    latents: Tensor
    prompts: tuple[PromptEmbedding, ...]
    grid: Size


@dataclass(frozen=True, slots=True)
class TrainingData:
    """All latents and prompt embeddings, on the CPU: lessons in flow matching, as FLUX was trained."""

    buckets: tuple[Bucket, ...]
    prompts: tuple[PromptEmbedding, ...]

    @property
    def smallest_grid(self) -> Size:
        """The smallest token grid that is trained."""
        return min(self.buckets, key=lambda bucket: bucket.latents.shape[1]).grid

    def renew(self, student: Student, spent: float) -> None:
        """Nothing: pictures and captions stay what they are."""

    def loss(self, student: Student, batch_size: int) -> Tensor:
        """The flow-matching loss of one random batch."""
        batch = self.draw(batch_size, student.generator, student.device)
        return flow_loss(student.transformer, batch.latents, batch.prompts, batch.grid, student.generator)

    def draw(self, size: int, generator: torch.Generator, device: torch.device) -> Batch:
        """A batch on `device`: random pictures of a random bucket, each with one of its captions.

        `size` is the batch size for the smallest token grid. Larger grids get fewer pictures, so that all steps cost
        about the same.
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
    pictures: Sequence[CaptionedPicture],
    captions: Mapping[str, PromptEmbedding],
    base: BaseModel,
    plan: TrainingPlan,
    report: ProgressReport,
) -> TrainingData:
    """Encode every picture. Each network is loaded for its part alone, so they share the memory.

    Raises:
        TrainingError: a picture cannot be read.
    """
    numbers = {caption: number for number, caption in enumerate(captions)}
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
    return TrainingData(tuple(buckets), tuple(captions.values()))


def embed_captions(
    pictures: Sequence[CaptionedPicture], base: BaseModel, report: ProgressReport
) -> dict[str, PromptEmbedding]:
    """The embedding of every caption, on the CPU. Loads the text encoders for the call."""
    captions = sorted({caption for picture in pictures for caption in picture.captions})
    report(TrainingProgress("captions", 0.0))
    embedded = dict(zip(captions, embed_prompts(captions, base), strict=True))
    report(TrainingProgress("captions", 1.0))
    return embedded


def embed_prompts(prompts: Sequence[str], base: BaseModel) -> list[PromptEmbedding]:
    """Embeddings of prompts, on the CPU. Loads the text encoders for the call."""
    folder = base.folder
    encoder = TextEncoder(folder.path, folder.sequence_length, base.load("text_encoder"), base.load("text_encoder_2"))
    starts = range(0, len(prompts), _PROMPTS_AT_ONCE)
    embeddings = (e for start in starts for e in encoder.encode(prompts[start : start + _PROMPTS_AT_ONCE]))
    # the encoders run in inference mode, and autograd refuses to save its tensors for the backward pass: clone them
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
    """Every picture at every area (megapixels), by area and token grid."""
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
    """The token grid of that aspect ratio of the API which cuts least off a picture of this size (in pixels)."""
    shape = picture.width / picture.height

    def loss(ratio: str) -> float:
        offered = ASPECT_RATIOS[ratio].width / ASPECT_RATIOS[ratio].height
        return max(shape / offered, offered / shape)

    return folder.token_grid(resolve_size(min(ASPECT_RATIOS, key=loss), megapixels))


@torch.no_grad()
def encode_picture(vae: Autoencoder, picture: Image.Image, grid: Size, folder: ModelFolder) -> Tensor:
    """The picture's packed latents (tokens, channels), float32 on the CPU, cut and resized to a grid in tokens."""
    side = folder.pixels_per_token
    fitted = ImageOps.fit(picture, (grid.width * side, grid.height * side), Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
    return pack_latents(vae.encode(values[None])[0].cpu())
