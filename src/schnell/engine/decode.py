"""Latents become pixels of exactly the size that was asked for."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from schnell.engine.denoise import (Drawing, unpack_latents)
from schnell.spec import Size


@torch.inference_mode()
def decode_latents(vae: Any, drawings: Sequence[Drawing]) -> list[Image.Image]:
    """Decode finished drawings of one token grid into RGB pictures of the size they were drawn at."""
    packed = torch.stack([drawing.latents for drawing in drawings])
    latents = unpack_latents(packed, drawings[0].grid) / vae.config.scaling_factor + vae.config.shift_factor
    pixels = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    return [Image.fromarray(array) for array in to_bytes(pixels).numpy()]


def to_bytes(pixels: Tensor) -> Tensor:
    """(batch, 3, height, width) in -1...1 to (batch, height, width, 3) in 0...255."""
    scaled = (pixels.float() / 2 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def fit_to_size(picture: Image.Image, size: Size, draw_scale: int) -> Image.Image:
    """Enlarge a drawn picture by `draw_scale`, and cut what the token grid added around the asked size."""
    if draw_scale != 1:
        enlarged = (picture.width * draw_scale, picture.height * draw_scale)
        picture = picture.resize(enlarged, Image.Resampling.LANCZOS)
    left, top = (picture.width - size.width) // 2, (picture.height - size.height) // 2
    if (picture.width, picture.height) == size:
        return picture
    return picture.crop((left, top, left + size.width, top + size.height))
