"""From latents to pixels: finished pictures through the autoencoder, previews of unfinished ones without it."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from schnell.engine.autoencoder import Autoencoder
from schnell.engine.denoise import LATENT_CHANNELS, Drawing, unpack_latents
from schnell.engine.strip_decoding import decode_in_strips
from schnell.spec import Size

#: The first pictures teach all there is to learn; after them, one in so many keeps up with what people ask for.
_FIRST_LESSONS, _LESSON_EVERY = 16, 8
#: Latent pixels of one picture that are learned from.
_MOST_PIXELS: Final = 4096
#: What an earlier picture still weighs in the previews' fit when the next one has come.
_DECAY: Final = 0.9
#: Small beside the latents' variance of about 1, and enough to solve for the first picture, however plain it is.
_RIDGE: Final = 1e-3
#: Of a preview, in pixels: previews travel in every progress event.
_LONGEST_PREVIEW_SIDE: Final = 256
#: Pictures of one request that are in memory at once: drawn, resampled, marked, and read by the encoder.
_KEPT_BLOCKS: Final = 4


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


def keep_memory_of_pictures() -> None:
    """Let Pillow keep the memory of the last pictures for the next ones, in this process.

    Giving back the 4 MB of a megapixel takes more than a millisecond, at the end of every request
    (https://pillow.readthedocs.io/en/stable/reference/block_allocator.html).
    """
    Image.core.set_blocks_max(_KEPT_BLOCKS)  # type: ignore[attr-defined]  # documented, and not typed


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


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a finished picture teaches about previews: every `every`th of its latent pixels, copied from the device.

    `latents` is (pixels, channels), `grid` the picture's width and height in tokens.
    """

    latents: NDArray[np.float32]
    grid: Size
    every: int


class PreviewFit:
    """Previews by a linear map from a latent pixel's channels to its colour, far cheaper than decoding.

    The map is not a constant of the model: it is fitted to the pictures that the decoder made here so far, by ridge
    regression over running moments, in which older pictures fade. One thread may learn while another one paints.
    """

    def __init__(self) -> None:
        # float64: these are sums over all pixels of a picture, and a system of equations is solved with them. In numpy,
        # since a second thread that computes with torch would take the first one's cores
        self._moments = np.zeros((LATENT_CHANNELS + 1, LATENT_CHANNELS + 1))
        self._targets = np.zeros((LATENT_CHANNELS + 1, 3))
        self._map: NDArray[np.floating[Any]] | None = None
        self._pictures = 0

    @property
    def is_ready(self) -> bool:
        """Whether any picture has been learned from."""
        return self._map is not None

    def lesson(self, drawing: Drawing) -> Lesson | None:
        """A copy of a finished drawing to learn from, or None where enough is known: copying waits for the device."""
        self._pictures += 1
        if self._pictures > _FIRST_LESSONS and self._pictures % _LESSON_EVERY:
            return None
        # evenly spread pixels are enough of a large picture
        every = -(-(2 * drawing.grid.width) * (2 * drawing.grid.height) // _MOST_PIXELS)
        return Lesson(_channels(drawing.latents, drawing.grid, every), drawing.grid, every)

    def learn(self, lesson: Lesson, picture: Image.Image) -> None:
        """Take a finished drawing and its decoded picture into account."""
        inputs = _features(lesson.latents)
        small = picture.resize((2 * lesson.grid.width, 2 * lesson.grid.height), Image.Resampling.BOX)
        colours = np.asarray(small).reshape(-1, 3)[:: lesson.every].astype(np.float64) / 255
        self._moments = _DECAY * self._moments + _product(inputs.T, inputs) / len(inputs)
        self._targets = _DECAY * self._targets + _product(inputs.T, colours) / len(inputs)
        self._map = np.linalg.solve(self._moments + _RIDGE * np.eye(LATENT_CHANNELS + 1), self._targets)

    def paint(self, drawing: Drawing, size: Size) -> bytes:
        """A small PNG, in the proportions of `size`, of the finished picture as the last step predicted it.

        Empty before the first step, and before any picture has been learned from.
        """
        if self._map is None or drawing.estimate is None:
            return b""
        predicted = _product(_features(_channels(drawing.estimate, drawing.grid)), self._map)
        colours = np.clip(predicted, 0, 1) * 255
        pixels = np.rint(colours).astype(np.uint8).reshape(2 * drawing.grid.height, 2 * drawing.grid.width, 3)
        shrink = _LONGEST_PREVIEW_SIDE / max(size)
        preview = Image.fromarray(pixels).resize(
            (round(size.width * shrink), round(size.height * shrink)), Image.Resampling.BICUBIC
        )
        file = BytesIO()
        preview.save(file, "PNG", compress_level=1)
        return file.getvalue()


def _channels(latents: Tensor, grid: Size, every: int = 1) -> NDArray[np.float32]:
    """(pixels, channels) of packed latents, one latent pixel in `every`, in the order of rows and columns."""
    channels: NDArray[np.float32] = unpack_latents(latents, grid).flatten(1).T[::every].float().cpu().numpy()
    return channels


def _product(a: NDArray[np.float64], b: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The matrix product, in the calling thread: that of `@` wakes BLAS's threads, which take cores from the steps."""
    product: NDArray[np.float64] = np.einsum("ik,kj->ij", a, b, optimize=False)
    return product


def _features(channels: NDArray[np.float32]) -> NDArray[np.float64]:
    """(pixels, channels + 1), in float64, which Apple's GPUs lack; the last column is 1, for the map's offset."""
    return np.concatenate([channels.astype(np.float64), np.ones((len(channels), 1))], axis=1)
