"""How crisp, how true and how clean pictures are: sharpness, distance to the training picture, and their edges."""

from collections.abc import Sequence

import torch
from torch import Tensor

from schnell_mini.gallery import find_object
from schnell_mini.latents import icon_size
from schnell_mini.pictures import Icons, render_icons

SIDE = 256
#: The part of a picture's side that counts as its edge.
RIM = 0.03
#: Offsets in pixels that are tried around the placement that the bounding boxes give.
OFFSETS = (-2, -1, 0, 1, 2)


def training_pictures(icons: Icons, chosen: Sequence[int]) -> Tensor:
    """These icons on white as they were trained on, at drawn size `[B, 3, 256, 256]` in 0..1."""
    pictures = icons.pictures[list(chosen)]
    return render_icons(pictures, torch.ones(len(pictures), 3), icon_size(SIDE), SIDE) / 2 + 0.5


def gradient_energy(picture: Tensor) -> float:
    """The mean squared difference of neighbouring pixels of `[3, H, W]`."""
    across, down = picture[..., 1:] - picture[..., :-1], picture[..., 1:, :] - picture[..., :-1, :]
    return float(across.square().mean() + down.square().mean())


def sharpness(drawn: Tensor, wanted: Tensor) -> float:
    """Gradient energy of a drawn picture as a share of its training picture's."""
    return gradient_energy(drawn) / max(gradient_energy(wanted), 1e-9)


def aligned_psnr(drawn: Tensor, wanted: Tensor) -> float:
    """PSNR in dB of pictures `[3, S, S]` in 0..1, the training picture moved to where the object was drawn."""
    here, there = find_object(drawn), find_object(wanted)
    down = (here.top + here.bottom - there.top - there.bottom) // 2
    right = (here.left + here.right - there.left - there.right) // 2
    errors = [
        float((torch.roll(wanted, (down + dy, right + dx), (1, 2)) - drawn).square().mean())
        for dy in OFFSETS
        for dx in OFFSETS
    ]
    return float(-10 * torch.log10(torch.tensor(min(errors)).clamp_min(1e-10)))


def edge_distance(picture: Tensor, ground: Sequence[float]) -> float:
    """How far the outer 3% of `[3, H, W]` are from the ground's colour, on average, in steps of 255."""
    height, width = picture.shape[-2:]
    rows, columns = max(1, round(RIM * height)), max(1, round(RIM * width))
    rim = torch.ones(height, width, dtype=torch.bool)
    rim[rows : height - rows, columns : width - columns] = False
    return float(255 * (picture[:, rim] - torch.tensor(ground)[:, None]).abs().mean())


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(torch.tensor(values).median())
