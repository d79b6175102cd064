"""From latents to pixels: finished pictures through the autoencoder, previews of unfinished ones without it."""

from collections.abc import Sequence
from io import BytesIO
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from schnell.engine.autoencoder import Autoencoder
from schnell.engine.denoise import LATENT_CHANNELS, Drawing, unpack_latents
from schnell.engine.strip_decoding import decode_in_strips
from schnell.spec import Size

#: What an earlier picture still weighs in the previews' fit when the next one has come.
_DECAY: Final = 0.9
#: Small beside the latents' variance of about 1, and enough to solve for the first picture, however plain it is.
_RIDGE: Final = 1e-3
#: Of a preview, in pixels: previews travel in every progress event.
_LONGEST_PREVIEW_SIDE: Final = 256


@torch.inference_mode()
def decode_latents(vae: Autoencoder, drawings: Sequence[Drawing], *, tiles: bool = False) -> list[Image.Image]:
    """Decode finished drawings of one token grid into RGB pictures of the size that they were drawn at.

    With `tiles`, in strips of the picture one after the other: the same pixels from far less of the device's memory.
    """
    packed = torch.stack([drawing.latents for drawing in drawings])
    latents = unpack_latents(packed, drawings[0].grid)
    pixels = decode_in_strips(vae, latents) if tiles else vae.decode(latents)
    return [Image.fromarray(array) for array in _to_bytes(pixels).numpy()]


def _to_bytes(pixels: Tensor) -> Tensor:
    """(batch, 3, height, width) from -1 to 1, in any float dtype, to (batch, height, width, 3) uint8 on the CPU."""
    scaled = (pixels.float() / 2 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def fit_to_size(picture: Image.Image, size: Size, draw_scale: int) -> Image.Image:
    """Enlarge a drawn picture `draw_scale` times, and cut it to `size` around its centre.

    A picture is drawn in whole tokens, so it may be somewhat larger than was asked for.
    """
    if draw_scale != 1:
        enlarged = (picture.width * draw_scale, picture.height * draw_scale)
        picture = picture.resize(enlarged, Image.Resampling.LANCZOS)
    left, top = (picture.width - size.width) // 2, (picture.height - size.height) // 2
    if (picture.width, picture.height) == size:
        return picture
    return picture.crop((left, top, left + size.width, top + size.height))


class PreviewFit:
    """Previews by a linear map from a latent pixel's channels to its colour, far cheaper than decoding.

    The map is not a constant of the model: it is fitted to the pictures that the decoder made here so far, by ridge
    regression over running moments, in which older pictures fade. One thread may learn while another paints.
    """

    def __init__(self) -> None:
        # float64: these are sums over all pixels of a picture, and a system of equations is solved with them
        self._moments = torch.zeros(LATENT_CHANNELS + 1, LATENT_CHANNELS + 1, dtype=torch.float64)
        self._targets = torch.zeros(LATENT_CHANNELS + 1, 3, dtype=torch.float64)
        self._map: Tensor | None = None

    @property
    def is_ready(self) -> bool:
        """Whether any picture has been learned from."""
        return self._map is not None

    def learn(self, drawing: Drawing, picture: Image.Image) -> None:
        """Take a finished drawing and its decoded picture into account."""
        inputs = _features(drawing.latents, drawing.grid)
        small = picture.resize((2 * drawing.grid.width, 2 * drawing.grid.height), Image.Resampling.BOX)
        # a bytearray, since torch warns of a buffer that it may not write to
        colours = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(-1, 3).double() / 255
        self._moments = _DECAY * self._moments + inputs.T @ inputs / len(inputs)
        self._targets = _DECAY * self._targets + inputs.T @ colours / len(inputs)
        ridge = _RIDGE * torch.eye(LATENT_CHANNELS + 1, dtype=torch.float64)
        self._map = torch.linalg.solve(self._moments + ridge, self._targets)

    def paint(self, drawing: Drawing, size: Size) -> bytes:
        """A small PNG, in the proportions of `size`, of the finished picture as the last step predicted it.

        Empty before the first step, and before any picture has been learned from.
        """
        if self._map is None or drawing.estimate is None:
            return b""
        colours = (_features(drawing.estimate, drawing.grid) @ self._map).clamp(0, 1) * 255
        pixels = colours.round().to(torch.uint8).view(2 * drawing.grid.height, 2 * drawing.grid.width, 3)
        shrink = _LONGEST_PREVIEW_SIDE / max(size)
        preview = Image.fromarray(pixels.numpy()).resize(
            (round(size.width * shrink), round(size.height * shrink)), Image.Resampling.BICUBIC
        )
        file = BytesIO()
        preview.save(file, "PNG", compress_level=1)
        return file.getvalue()


def _features(latents: Tensor, grid: Size) -> Tensor:
    """(latent pixels, channels + 1) in float64 on the CPU; the last column is 1, for the map's offset."""
    channels = unpack_latents(latents.cpu(), grid).flatten(1).T.double()
    return torch.cat([channels, torch.ones(len(channels), 1, dtype=torch.float64)], dim=1)
