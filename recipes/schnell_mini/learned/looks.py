"""The looks of bundled LoRAs and of the learned base model, painted from icons in batches, on any device.

They are made so that an autoencoder of 8 x 8 pixels a latent can draw them: thick lines, large pixels, few details.

Icons are premultiplied `[B, 4, S, S]` in 0..1, already placed on their canvas; grounds are `[B, 3]`; pictures come out
as `[B, 3, S, S]` in 0..1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor
from torch.nn import functional

from schnell_mini.captions import COLOURS

Painter = Callable[[Tensor, Tensor], Tensor]

#: Sides of the pixel look's squares: two latents on canvases of 1 MP's size, one on smaller ones.
LARGE_CELL, CELL, LARGE_CANVAS = 16, 8, 224
#: After GrafxKid's "Sweetie 16", with a brown, white, and stronger reds and yellows.
_PALETTE = (
    "1a1c2c 5d275d e0323c ff8f2e ffd54a a7f070 38b764 257179 7a4a2e 3b5dc9 41a6f6 ffc9a3 ffffff 94b0c2 566c86 333c57"
)
PALETTE = tuple(tuple(value / 255 for value in bytes.fromhex(colour)) for colour in _PALETTE.split())
#: Thresholds of the lines within an object and of those around it, and the blur that details are lost in.
INNER_LINES, OUTER_LINES, DETAIL = 0.09, 0.05, 2.0
#: How strong an icon's strongest line within is made, by what factor at most, and how far from the outline that begins.
FULL_CONTRAST, MOST_RAISED, RIM = 0.2, 10 / 3, 12
FLAT_COLOURS, FLAT_ROUNDS = 5, 6
LUMINANCE = (0.299, 0.587, 0.114)
INK = (0.08, 0.08, 0.1)
CHALK = (0.95, 0.98, 1.0)
UNDYED_GLOW = (0.35, 0.85, 1.0)


@dataclass(frozen=True)
class Look:
    """One look: how prompts ask for it (the first phrase is the bundled LoRA's trigger), and how it is painted.

    `ground` is the colour that it always has; where that is None, the prompt's ground is painted.
    """

    name: str
    phrases: tuple[str, ...]
    paint: Painter
    ground: str | None = None


def over(picture: Tensor, colour: Tensor, alpha: Tensor) -> Tensor:
    """`colour` laid over a picture with `alpha` `[B, 1, S, S]`."""
    return colour * alpha + picture * (1 - alpha)


def plain(colours: Tensor, like: Tensor) -> Tensor:
    """Plain grounds `[B, 3, S, S]` of the icons' size."""
    return colours.to(like)[:, :, None, None].expand(-1, -1, *like.shape[-2:])


def on_ground(icons: Tensor, grounds: Tensor) -> Tensor:
    """Icons on plain grounds."""
    return icons[:, :3] + plain(grounds, icons) * (1 - icons[:, 3:])


def tint(colour: tuple[float, ...], like: Tensor) -> Tensor:
    """One colour as `[1, 3, 1, 1]`."""
    return torch.tensor(colour, device=like.device, dtype=like.dtype)[None, :, None, None]


def blur(pictures: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur; edges are repeated. A wide one runs on a smaller picture, where it costs a fraction."""
    if sigma >= 3 and pictures.shape[-1] % 2 == 0:
        small = blur(functional.avg_pool2d(pictures, 2), sigma / 2)
        return functional.interpolate(small, scale_factor=2.0, mode="bilinear")
    reach = round(2.5 * sigma)
    steps = torch.arange(-reach, reach + 1, device=pictures.device, dtype=pictures.dtype)
    weights = torch.exp(-steps.square() / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(pictures.shape[1], 1, -1)
    padded = functional.pad(pictures, (reach,) * 4, mode="replicate")
    across = functional.conv2d(padded, weights[:, :, None], groups=pictures.shape[1])
    return functional.conv2d(across, weights[..., None], groups=pictures.shape[1])


def outlines(icons: Tensor) -> Tensor:
    """Where a pen would draw `[B, 1, S, S]`: thresholded differences of Gaussians (Winnemöller et al. 2012, "XDoG").

    The silhouette's edge counts, and edges within, of all three channels, each drawn on its darker side. An icon whose
    strongest edge within is faint has its edges there raised: else a white digit on light blue is an empty square.
    """
    seen = on_ground(blur(icons, DETAIL), torch.ones(len(icons), 3, device=icons.device))
    around = 1 - icons[:, 3:]
    inner = (blur(seen, 6.0) - blur(seen, 2.0)).amax(1, keepdim=True)
    outer = blur(around, 6.0) - blur(around, 2.0)
    within = 1 - functional.max_pool2d(around, 2 * RIM + 1, 1, RIM)
    strongest = (inner * within).flatten(1).quantile(0.98, dim=1)[:, None, None, None]
    raised = (FULL_CONTRAST / strongest.clamp_min(1e-3)).clamp(1, MOST_RAISED)
    inner = inner * torch.lerp(torch.ones_like(raised), raised, blur(within, 4.0))
    return torch.maximum(9 * (inner - INNER_LINES), 9 * (outer - OUTER_LINES)).clamp(0, 1)


def paint_3d(icons: Tensor, grounds: Tensor) -> Tensor:
    """As they are."""
    return on_ground(icons, grounds)


def paint_line(icons: Tensor, grounds: Tensor) -> Tensor:
    """Dark lines on the ground, nothing between them."""
    return over(plain(grounds, icons), tint(INK, icons), outlines(icons))


def paint_blueprint(icons: Tensor, grounds: Tensor) -> Tensor:
    """White lines around shapes that are the lighter the brighter they were, on blue paper."""
    soft = blur(icons, DETAIL)
    light = (soft[:, :3] * tint(LUMINANCE, icons)).sum(1, keepdim=True)
    washed = over(plain(grounds, icons), tint(CHALK, icons), 0.05 * soft[:, 3:] + 0.45 * light)
    return over(washed, tint(CHALK, icons), outlines(icons))


def paint_black_light(icons: Tensor, grounds: Tensor) -> Tensor:
    """Colours at full strength and bright edges, with a glow around them, in a dark room."""
    soft = blur(icons, DETAIL)
    colours = (soft[:, :3] / soft[:, 3:].clamp_min(1e-2)).clamp(0, 1)
    brightest, dullest = colours.amax(1, keepdim=True), colours.amin(1, keepdim=True)
    pure = (colours - dullest) / (brightest - dullest).clamp_min(1e-3)
    weight = (3 * (brightest - dullest) / brightest.clamp_min(1e-3) - 0.4).clamp(0, 1)
    dye = over(tint(UNDYED_GLOW, icons), pure, weight)
    light = dye * icons[:, 3:] * (0.06 + 0.14 * colours.mean(1, keepdim=True)) + 1.15 * dye * outlines(icons)
    return (plain(grounds, icons) + light + 0.5 * blur(light, 3) + 0.5 * blur(light, 8)).clamp(0, 1)


def paint_pixel(icons: Tensor, grounds: Tensor) -> Tensor:
    """Squares of one or two latents, each in the nearest colour of a palette."""
    side = LARGE_CELL if min(icons.shape[-2:]) >= LARGE_CANVAS else CELL
    cells = functional.avg_pool2d(icons, side)
    solid = (cells[:, 3:] > 0.5).to(icons)
    colours = cells[:, :3] / cells[:, 3:].clamp_min(1e-3)
    palette = torch.tensor(PALETTE, device=icons.device, dtype=icons.dtype)
    nearest = torch.cdist(colours.permute(0, 2, 3, 1).flatten(1, 2), palette[None]).argmin(-1)
    drawn = palette[nearest].transpose(1, 2).reshape(-1, 3, *cells.shape[-2:])
    drawn, solid = (functional.interpolate(part, scale_factor=side) for part in (drawn, solid))
    return over(plain(grounds, icons), drawn, solid)


def paint_flat(icons: Tensor, grounds: Tensor) -> Tensor:
    """Five even colours a picture, without light and shade (k-means over its pixels), and a white rim around them."""
    smooth = blur(icons, 2.5)
    small = functional.interpolate(smooth, size=(48, 48), mode="area")
    points = (small[:, :3] / small[:, 3:].clamp_min(1e-3)).flatten(2).transpose(1, 2)
    centres = spread_centres(points, small[:, 3].flatten(1))
    colours = (smooth[:, :3] / smooth[:, 3:].clamp_min(1e-3)).flatten(2).transpose(1, 2)
    nearest = torch.cdist(colours, centres).argmin(-1, keepdim=True)
    even = centres.gather(1, nearest.expand(-1, -1, 3)).transpose(1, 2).reshape(-1, 3, *icons.shape[-2:])
    vivid = (1.15 * (blur(even, 0.7) - 0.5) + 0.5).clamp(0, 1)
    wide = functional.max_pool2d(blur(icons[:, 3:], 2.0), 9, 1, 4)
    rim = (6 * blur(wide, 2.0) - 1.5).clamp(0, 1)
    return over(over(plain(grounds, icons), torch.ones_like(vivid), rim), vivid, icons[:, 3:])


def spread_centres(points: Tensor, weights: Tensor) -> Tensor:
    """K-means of points `[B, N, 3]`, weighted `[B, N]`: `[B, 5, 3]`; it starts far apart (Gonzalez 1985)."""
    weights = weights.clamp_min(1e-4)
    centres = [(points * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)]
    for _ in range(FLAT_COLOURS - 1):
        distances = torch.cdist(points, torch.stack(centres, 1)).amin(2) * (weights > 0.9)
        centres.append(points.gather(1, distances.argmax(1)[:, None, None].expand(-1, 1, 3))[:, 0])
    found = torch.stack(centres, 1)
    for _ in range(FLAT_ROUNDS):
        near = functional.one_hot(torch.cdist(points, found).argmin(2), FLAT_COLOURS).to(points) * weights[..., None]
        found = (near.transpose(1, 2) @ points) / near.sum(1)[..., None].clamp_min(1e-3)
    return found


LOOKS = (
    Look("3d", ("3d icon", "3d render"), paint_3d),
    Look("black-light", ("black light", "neon glow"), paint_black_light, "black"),
    Look("flat", ("flat style", "flat design"), paint_flat, "sky blue"),
    Look("line", ("line art", "outline drawing"), paint_line),
    Look("pixel", ("pixel art", "8-bit"), paint_pixel),
    Look("blueprint", ("blueprint", "blueprint drawing"), paint_blueprint, "blue"),
)


def place(icons: Tensor, canvas: tuple[int, int], placements: Tensor) -> Tensor:
    """Premultiplied icons on a transparent canvas of (height, width): `[B, 4, H, W]`.

    `placements` `[B, 4]`: the icon's side in pixels, its tilt in degrees, and how far right of and below the middle.
    """
    height, width = canvas
    side, angle, right, down = placements.T[:, :, None, None]
    angle = angle * (pi / 180)
    across = torch.arange(width, device=icons.device) + 0.5 - width / 2 - right
    along = torch.arange(height, device=icons.device)[:, None] + 0.5 - height / 2 - down
    columns = 2 * (torch.cos(angle) * across + torch.sin(angle) * along) / side
    rows = 2 * (torch.cos(angle) * along - torch.sin(angle) * across) / side
    grid = torch.stack([columns, rows], -1).to(icons)
    placed = functional.grid_sample(icons, grid, mode="bicubic", align_corners=False).clamp(0, 1)
    return torch.cat([torch.minimum(placed[:, :3], placed[:, 3:]), placed[:, 3:]], 1)


def ground_of(look: Look, asked: str) -> tuple[float, float, float]:
    """The colour of a picture's ground."""
    return COLOURS[look.ground or asked]
