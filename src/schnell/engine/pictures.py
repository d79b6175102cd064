"""Latents become pixels: the finished picture from the decoder, and a cheap look at one on its way."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from schnell.engine.denoise import LATENT_CHANNELS, Drawing, unpack_latents
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


_FORGETTING = 0.9
_RIDGE = 1e-3
_LONGEST_SIDE = 256


class PreviewFit:
    """Learns the map from decoded pictures, and paints previews with it. Used by one thread."""

    def __init__(self) -> None:
        self._moments = torch.zeros(LATENT_CHANNELS + 1, LATENT_CHANNELS + 1, dtype=torch.float64)
        self._targets = torch.zeros(LATENT_CHANNELS + 1, 3, dtype=torch.float64)
        self._map: Tensor | None = None

    @property
    def is_ready(self) -> bool:
        """Whether any picture has been seen."""
        return self._map is not None

    def learn(self, drawing: Drawing, picture: Image.Image) -> None:
        """Take a finished drawing and its decoded picture into account."""
        inputs = _features(drawing.latents, drawing.grid)
        small = picture.resize((2 * drawing.grid.width, 2 * drawing.grid.height), Image.Resampling.BOX)
        colours = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(-1, 3).double() / 255
        self._moments = _FORGETTING * self._moments + inputs.T @ inputs / len(inputs)
        self._targets = _FORGETTING * self._targets + inputs.T @ colours / len(inputs)
        ridge = _RIDGE * torch.eye(LATENT_CHANNELS + 1, dtype=torch.float64)
        self._map = torch.linalg.solve(self._moments + ridge, self._targets)

    def paint(self, drawing: Drawing, size: Size) -> bytes:
        """A small PNG, in the proportions of `size`, of what the drawing is heading for."""
        if self._map is None or drawing.estimate is None:
            return b""
        colours = (_features(drawing.estimate, drawing.grid) @ self._map).clamp(0, 1) * 255
        pixels = colours.round().to(torch.uint8).view(2 * drawing.grid.height, 2 * drawing.grid.width, 3)
        shrink = _LONGEST_SIDE / max(size)
        preview = Image.fromarray(pixels.numpy()).resize(
            (round(size.width * shrink), round(size.height * shrink)), Image.Resampling.BICUBIC
        )
        file = BytesIO()
        preview.save(file, "PNG", compress_level=1)
        return file.getvalue()


def _features(latents: Tensor, grid: Size) -> Tensor:
    """(latent pixels, channels + 1) in float64; the last column is 1."""
    channels = unpack_latents(latents, grid).flatten(1).T.double().cpu()
    return torch.cat([channels, torch.ones(len(channels), 1, dtype=torch.float64)], dim=1)
