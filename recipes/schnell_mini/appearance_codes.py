"""What every icon looks like, in few numbers, and how those numbers become a picture: linear maps, solved at once.

All pictures of one view are a matrix; its principal components give each icon 184 numbers. A token of a picture is
then, to a few percent, a linear function of them: the object's part, plus the background's colour where nothing
covers it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from schnell_mini.captions import COLOURS
from schnell_mini.latents import FACTOR, Encoded, centred_pose, pack
from schnell_mini.layout import COLOUR_CODES, LOOKS
from schnell_mini.pictures import Icons, resize
from schnell_mini.placement import MOVING, SIDES, first_corner

VIEW_OF_SIDE = dict(zip(SIDES, ("white", "wide", "small", "tiny"), strict=True))
RIDGE = 2.0
CLEAR_CELL = 2


@dataclass(frozen=True)
class Looks:
    """Codes of icons `[N, K]` (unit spread) with each component's strength `[K]`."""

    codes: Tensor
    strengths: Tensor

    @property
    def weights(self) -> Tensor:
        """How much an error in each code counts: its strength's share `[K]`."""
        return self.strengths / self.strengths.sum()


@dataclass(frozen=True)
class Palette:
    """Background colours as codes `[C, 3]` and what one unit of each does to a latent `[3, 16]`."""

    codes: Tensor
    patterns: Tensor


@dataclass(frozen=True)
class Maps:
    """A view's tokens as functions of an icon's codes.

    `object` `[T, 64, K]` with `object_mean` `[T, 64]`; `open` `[T, 4, K]` with `open_mean` `[T, 4]`: how much of each
    of a token's four latents shows the background.
    """

    object: Tensor
    object_mean: Tensor
    open: Tensor
    open_mean: Tensor


def measure_codes(white: Encoded) -> Looks:
    """The principal components of the white view's latents; no more than there are icons."""
    tokens = pack(white.latents.float()).flatten(1)
    centred = (tokens - tokens.mean(0)).double()
    energies, scores = torch.linalg.eigh(centred @ centred.T)
    count = min(LOOKS, len(tokens) - 1)
    codes = torch.zeros(len(tokens), LOOKS)
    codes[:, :count] = scores.flip(1)[:, :count].float() * len(tokens) ** 0.5
    strengths = energies.flip(0)[:count].clamp_min(0).sqrt().float()
    return Looks(codes, functional.pad(strengths, (0, LOOKS - count)))


def measure_palette(white: Encoded, colour: Encoded) -> Palette:
    """What each background colour does to a latent that nothing covers."""
    corners = {0: white.latents[:, :, CLEAR_CELL, CLEAR_CELL].float().median(0).values}
    for number in range(1, len(COLOURS)):
        chosen = colour.latents[colour.colours == number]
        corners[number] = chosen[:, :, CLEAR_CELL, CLEAR_CELL].float().median(0).values if len(chosen) else corners[0]
    values = torch.stack([corners[number] for number in range(len(COLOURS))])
    scores, strengths, patterns = torch.linalg.svd(values - values.mean(0), full_matrices=False)
    count = len(COLOURS) ** 0.5
    return Palette(scores[:, :COLOUR_CODES] * count, strengths[:COLOUR_CODES, None] / count * patterns[:COLOUR_CODES])


def measure_openness(icons: Icons, side: int) -> Tensor:
    """How much of each latent shows the background where the noise does not move the view: `[N, T, 4]`."""
    pixels, parts = 2 * side * FACTOR, []
    size = centred_pose(pixels).size
    rim = (pixels - size) // 2
    for pictures in torch.split(icons.pictures, 64):
        alpha = resize(pictures.float() / 255, size)[:, 3:]
        alpha = functional.pad(alpha, (rim, pixels - size - rim, rim, pixels - size - rim))
        parts.append(functional.avg_pool2d(alpha, FACTOR))
    cover = torch.cat(parts)
    if side >= MOVING:
        cover = torch.roll(cover, (-1, -1), (2, 3))
    grid = cover.view(len(cover), side, 2, side, 2).permute(0, 1, 3, 2, 4)
    return 1 - grid.reshape(len(cover), side * side, 4)


def background(palette: Palette, colours: Tensor, openness: Tensor) -> Tensor:
    """What the background adds to each token `[N, T, 64]`."""
    pattern = palette.codes[colours] @ palette.patterns
    return (pattern[:, None, :, None] * openness[:, :, None, :]).flatten(2)


def measure_maps(view: Encoded, side: int, looks: Looks, palette: Palette, openness: Tensor) -> Maps:
    """Ridge regression of a view's tokens on the icons' codes."""
    tokens = pack(first_corner(view.latents.float(), side))
    objects = tokens - background(palette, view.colours, openness)
    inputs = torch.cat([looks.codes, torch.ones(len(looks.codes), 1)], 1)
    gram = inputs.T @ inputs + RIDGE * torch.eye(inputs.shape[1])
    found = torch.linalg.solve(gram, inputs.T @ torch.cat([objects, openness], 2).flatten(1))
    found = found.view(len(gram), tokens.shape[1], -1).permute(1, 2, 0)
    return Maps(found[:, :-4, :-1], found[:, :-4, -1], found[:, -4:, :-1], found[:, -4:, -1])


def measure_all_maps(views: Mapping[str, Encoded], icons: Icons, looks: Looks, palette: Palette) -> dict[int, Maps]:
    """The maps of every view, by its side in tokens."""
    return {
        side: measure_maps(views[name], side, looks, palette, measure_openness(icons, side))
        for side, name in VIEW_OF_SIDE.items()
    }
