"""The looks of the bundled LoRAs, as image processing: an icon with transparency in, a styled picture out.

All pictures are 256 x 256. Arrays are float32 in 0...1, (height, width, channels).
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from schnell_mini.pictures import ICON_SHARE, ICON_SIDE

Array = npt.NDArray[np.float32]
Colour = tuple[float, float, float]
Style = Callable[[Image.Image, Colour], Image.Image]

_INK: Final = np.array([0.02, 0.005, 0.07], dtype=np.float32)
_UNDYED_GLOW: Final = np.array([0.35, 0.85, 1.0], dtype=np.float32)
_CHALK: Final = np.array([0.95, 0.98, 1.0], dtype=np.float32)
_PENCIL: Final = np.array([0.1, 0.1, 0.12], dtype=np.float32)
_TONE: Final = 0.8
_WASH: Final = 0.225
_CELL: Final = 16
_SHRINK: Final = Image.Resampling.BOX
#: After GrafxKid's "Sweetie 16", with a brown, white, and stronger reds and yellows.
_PALETTE: Final = (
    "1a1c2c 5d275d e0323c ff8f2e ffd54a a7f070 38b764 257179 7a4a2e 3b5dc9 41a6f6 ffc9a3 ffffff 94b0c2 566c86 333c57"
)
#: The same as colours in 0...1.
PALETTE: Final = tuple(tuple(value / 255 for value in bytes.fromhex(colour)) for colour in _PALETTE.split())
_FLAT_COLOURS: Final = 6


def paint_flat(icon: Image.Image, background: Colour) -> Image.Image:
    """A few even colours, without light and shade, on a plain background."""
    drawn = _rgba(_placed(icon))
    few = _image(_composite(drawn, _colour(background))).quantize(_FLAT_COLOURS, dither=Image.Dither.NONE)
    even = _rgba(few.convert("RGB").filter(ImageFilter.ModeFilter(5)))
    return _image(_over(_colour(background), np.clip(1.15 * (even - 0.5) + 0.5, 0, 1), drawn[..., 3:]))


def paint_black_light(icon: Image.Image, _background: Colour) -> Image.Image:
    """Colours and edges glow like neon in a dark room."""
    drawn = _rgba(_placed(icon))
    alpha = drawn[..., 3:]
    dye = _neon(drawn[..., :3])
    shade = drawn[..., :3].mean(axis=2, keepdims=True)
    light = dye * alpha * (0.2 + 0.5 * shade + _ink(drawn))
    return _image(_INK + light + 0.5 * _blurred(light, 4) + 0.5 * _blurred(light, 14))


def paint_line(icon: Image.Image, background: Colour) -> Image.Image:
    """A pencil drawing: dark lines along all edges, grey tones between them."""
    drawn = _rgba(_placed(icon))
    greys = np.repeat(drawn[..., :3].mean(axis=2, keepdims=True), 3, axis=2)
    toned = _over(_colour(background), greys, _TONE * drawn[..., 3:])
    return _image(_over(toned, _PENCIL, _ink(drawn)))


def paint_blueprint(icon: Image.Image, background: Colour) -> Image.Image:
    """White lines around light blue shapes on blue paper."""
    drawn = _rgba(_placed(icon))
    washed = _over(_colour(background), _CHALK, _WASH * drawn[..., 3:])
    return _image(_over(washed, _CHALK, _ink(drawn)))


def paint_pixels(icon: Image.Image, background: Colour) -> Image.Image:
    """Big square pixels in sixteen colours."""
    cells = ICON_SIDE // _CELL
    small = _image(_composite(_rgba(_placed(icon)), _colour(background))).resize((cells, cells), _SHRINK)
    indexed = small.quantize(palette=_palette_image(), dither=Image.Dither.NONE)
    return indexed.convert("RGB").resize((ICON_SIDE, ICON_SIDE), Image.Resampling.NEAREST)


def _placed(icon: Image.Image) -> Image.Image:
    side = round(ICON_SIDE * ICON_SHARE)
    canvas = Image.new("RGBa", (ICON_SIDE, ICON_SIDE))
    # premultiplied while it shrinks, or hidden colours would bleed into the edges
    canvas.paste(icon.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS), ((ICON_SIDE - side) // 2,) * 2)
    return canvas.convert("RGBA")


def _colour(background: Colour) -> Array:
    return np.array(background, dtype=np.float32)


def _rgba(picture: Image.Image) -> Array:
    return np.asarray(picture, dtype=np.float32) / np.float32(255)


def _image(values: npt.NDArray[Any]) -> Image.Image:
    return Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8))


def _composite(drawn: Array, background: Array) -> Array:
    return _over(background, drawn[..., :3], drawn[..., 3:])


def _over(below: Array, above: Array, alpha: Array) -> Array:
    return np.asarray(above * alpha + below * (1 - alpha), dtype=np.float32)


def _neon(colours: Array) -> Array:
    """Colours at full brightness and saturation; greys take a cold light."""
    brightest = colours.max(axis=2, keepdims=True)
    dullest = colours.min(axis=2, keepdims=True)
    saturation = (brightest - dullest) / np.maximum(brightest, 1e-3)
    pure = (colours - dullest) / np.maximum(brightest - dullest, 1e-3)
    weight = np.clip(3 * saturation - 0.4, 0, 1)
    return _over(_UNDYED_GLOW, np.asarray(pure, dtype=np.float32), weight)


def _ink(drawn: Array) -> Array:
    """Where a pen would draw: what is darker than its surroundings on white, a difference of Gaussians
    (Winnemöller et al. 2012, "XDoG"). Nearly linear in the picture, so that a low rank can learn it.
    """
    seen = _composite(drawn, np.ones(3, dtype=np.float32)).min(axis=2, keepdims=True)
    darker = _blurred(seen, 7) - _blurred(seen, 1)
    return np.asarray(np.clip(3.5 * darker, 0, 1), dtype=np.float32)


def _blurred(values: Array, radius: float) -> Array:
    picture = Image.fromarray((np.clip(values.squeeze(), 0, 1) * 255).astype(np.uint8))
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255
    return np.asarray(blurred.reshape(values.shape), dtype=np.float32)


def _palette_image() -> Image.Image:
    image = Image.new("P", (1, 1))
    image.putpalette(bytes.fromhex(_PALETTE.replace(" ", "")) * 16)
    return image
