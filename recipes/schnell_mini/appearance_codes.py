"""Each icon's appearance in few numbers (codes), and the linear maps from codes to the tokens of a picture.

The white view's pictures form a matrix; its principal components give each icon 184 codes. To within a few percent, a
token of a picture is a linear function of them: the object's part, plus the background's colour where nothing covers
it. The maps are found by ridge regression.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from schnell.engine.denoise import pack_latents
from schnell_mini.captions import COLOURS
from schnell_mini.latents import PIXELS_PER_LATENT, Encoded, icon_size
from schnell_mini.layout import APPEARANCE_CODES, BACKGROUND_CODES
from schnell_mini.pictures import Icons, resize
from schnell_mini.placement import SMALLEST_MOVED, VIEW_SIDES, place_unmoved

VIEW_OF_SIDE = dict(zip(VIEW_SIDES, ("white", "wide", "small", "tiny"), strict=True))
RIDGE = 2.0
#: Row and column of a latent that no icon covers.
UNCOVERED = 2


@dataclass(frozen=True)
class AppearanceCodes:
    """Codes of icons `[N, K]`, each of unit variance over the icons, and each component's singular value `[K]`."""

    codes: Tensor
    strengths: Tensor

    @property
    def weights(self) -> Tensor:
        """How much an error in each code counts: its share of all singular values `[K]`."""
        return self.strengths / self.strengths.sum()


@dataclass(frozen=True)
class BackgroundCodes:
    """Codes of background colours `[C, 3]`, and what one unit of each adds to a latent `[3, 16]`."""

    codes: Tensor
    patterns: Tensor


@dataclass(frozen=True)
class TokenMaps:
    """A view's tokens as linear functions of an icon's codes.

    `object` `[T, 64, K]` with `object_mean` `[T, 64]` gives the latents without background; `visibility` `[T, 4, K]`
    with `visibility_mean` `[T, 4]` gives how much of each of the token's four latents shows the background.
    """

    object: Tensor
    object_mean: Tensor
    visibility: Tensor
    visibility_mean: Tensor


def measure_appearance(white: Encoded) -> AppearanceCodes:
    """The principal components of the white view's latents. Fewer icons have fewer components; further codes are 0."""
    tokens = pack_latents(white.latents.float()).flatten(1)
    centred = (tokens - tokens.mean(0)).double()
    energies, scores = torch.linalg.eigh(centred @ centred.T)
    count = min(APPEARANCE_CODES, len(tokens) - 1)
    codes = torch.zeros(len(tokens), APPEARANCE_CODES)
    codes[:, :count] = scores.flip(1)[:, :count].float() * len(tokens) ** 0.5
    strengths = energies.flip(0)[:count].clamp_min(0).sqrt().float()
    return AppearanceCodes(codes, functional.pad(strengths, (0, APPEARANCE_CODES - count)))


def measure_background(white: Encoded, colour: Encoded) -> BackgroundCodes:
    """The principal components of what each background colour does to a latent that nothing covers."""
    at = (..., UNCOVERED, UNCOVERED)
    corners = {0: white.latents[at].float().median(0).values}
    for number in range(1, len(COLOURS)):
        chosen = colour.latents[colour.colours == number]
        corners[number] = chosen[at].float().median(0).values if len(chosen) else corners[0]
    values = torch.stack([corners[number] for number in range(len(COLOURS))])
    scores, strengths, patterns = torch.linalg.svd(values - values.mean(0), full_matrices=False)
    scale = len(COLOURS) ** 0.5
    codes = scores[:, :BACKGROUND_CODES] * scale
    return BackgroundCodes(codes, strengths[:BACKGROUND_CODES, None] / scale * patterns[:BACKGROUND_CODES])


def measure_visibility(icons: Icons, side: int) -> Tensor:
    """How much of each latent shows the background, in the view that the noise does not move: `[N, T, 4]` in 0..1."""
    canvas, parts = 2 * side * PIXELS_PER_LATENT, []
    size = icon_size(canvas)
    rim = (canvas - size) // 2
    for pictures in torch.split(icons.pictures, 64):
        alpha = resize(pictures.float() / 255, size)[:, 3:]
        alpha = functional.pad(alpha, (rim, canvas - size - rim, rim, canvas - size - rim))
        parts.append(functional.avg_pool2d(alpha, PIXELS_PER_LATENT))
    cover = torch.cat(parts)
    if side >= SMALLEST_MOVED:
        cover = torch.roll(cover, (-1, -1), (2, 3))  # half a token up and left, as `place_unmoved` puts the latents
    grid = cover.view(len(cover), side, 2, side, 2).permute(0, 1, 3, 2, 4)
    return 1 - grid.reshape(len(cover), side * side, 4)


def background_tokens(background: BackgroundCodes, colours: Tensor, visibility: Tensor) -> Tensor:
    """What backgrounds `[N]` add to each token where they are visible (`[N, T, 4]`): `[N, T, 64]`."""
    pattern = background.codes[colours] @ background.patterns
    return (pattern[:, None, :, None] * visibility[:, :, None, :]).flatten(2)


def fit_token_maps(
    view: Encoded, side: int, appearance: AppearanceCodes, background: BackgroundCodes, visibility: Tensor
) -> TokenMaps:
    """Ridge regression of a view's tokens, and of what is visible behind them, on the icons' codes."""
    tokens = pack_latents(place_unmoved(view.latents.float(), side))
    objects = tokens - background_tokens(background, view.colours, visibility)
    inputs = torch.cat([appearance.codes, torch.ones(len(appearance.codes), 1)], 1)
    gram = inputs.T @ inputs + RIDGE * torch.eye(inputs.shape[1])
    found = torch.linalg.solve(gram, inputs.T @ torch.cat([objects, visibility], 2).flatten(1))
    found = found.view(len(gram), tokens.shape[1], -1).permute(1, 2, 0)
    return TokenMaps(found[:, :-4, :-1], found[:, :-4, -1], found[:, -4:, :-1], found[:, -4:, -1])


def fit_all_token_maps(
    views: Mapping[str, Encoded], icons: Icons, appearance: AppearanceCodes, background: BackgroundCodes
) -> dict[int, TokenMaps]:
    """The maps of every view, by its side in tokens."""
    return {
        side: fit_token_maps(views[name], side, appearance, background, measure_visibility(icons, side))
        for side, name in VIEW_OF_SIDE.items()
    }
