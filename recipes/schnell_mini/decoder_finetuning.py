"""Finetuning of the decoder on latents as the transformer denoises them, for the pictures that they should be.

A picture follows from its text and its noise, so the right picture for denoised latents is known. Two updates of three
use denoised latents, the third uses encoded ones, so that reconstruction improves as well. Windows often lie at the
canvas's edge: a decoder that was trained on crops draws a visible rim there, so the outermost pixels count more, and
corners most. The encoder, and with it the latents, do not change.
"""

from random import Random
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor

from schnell.engine.denoise import unpack_latents
from schnell_mini.autoencoder import picture_loss
from schnell_mini.code_conditioning import CodeConditioner, conditioned_by_codes
from schnell_mini.latents import PIXELS_PER_LATENT, background_rgb, icon_size
from schnell_mini.loop import MovingAverage, mixed_precision, optimizer_step, rate_factor
from schnell_mini.picture_dataset import PictureBatch, PictureDataset
from schnell_mini.pictures import Icons, render_icons
from schnell_mini.placement import SMALLEST_MOVED, Grid
from schnell_mini.sampling import denoise

RATE = 4e-4
WINDOW = 16
MARGIN = 24
RIM_PIXELS, RIM_WEIGHT = 2, 0.3
CORNER_PIXELS = 24
STEP_COUNTS = (1, 2, 4, 4)
GRIDS = (Grid(16, 16),) * 4 + (Grid(12, 12), Grid(8, 8), Grid(8, 8), Grid(6, 6))
BATCH_SIZES = {"cuda": 64, "cpu": 6}


class DecoderLearner:
    """Trains `vae.decoder` on windows of 128 pixels, or on the whole canvas where that is smaller."""

    name = "decoder"

    def __init__(
        self,
        vae: AutoencoderKL,
        transformer: FluxTransformer2DModel,
        conditioner: CodeConditioner,
        dataset: PictureDataset,
        icons: Icons,
    ) -> None:
        self.vae, self.transformer, self.conditioner = vae, transformer, conditioner
        self.dataset, self.icons, self.device = dataset, icons, transformer.device
        self.decoder = vae.decoder.to(memory_format=torch.channels_last).requires_grad_(requires_grad=True).train()
        self.rng, self.done, self.batch_size = Random(0), 0, BATCH_SIZES[self.device.type]
        self.colours = background_rgb().to(icons.pictures.device)
        self.average = MovingAverage(self.decoder, 0.99)
        groups = [{"params": list(self.decoder.parameters()), "base": RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99))

    def update(self, progress: float) -> Tensor:
        """One optimizer step; the loss."""
        grid = self.rng.choice(GRIDS)
        batch = self.dataset.sample(self.rng, grid, self.batch_size)
        latents = unpack_latents(self.denoise_batch(batch, grid) if self.done % 3 else batch.clean, grid.size)
        sides = latents.shape[-2:]
        window = min(WINDOW, sides[1])
        top, left = (self.window_start(side - window) for side in sides)
        config = self.vae.config
        part = latents[..., top : top + window, left : left + window].to(memory_format=torch.channels_last)
        with mixed_precision(self.device, convolutions=True):
            decoded = self.decoder(part / config["scaling_factor"] + config["shift_factor"])
        wanted = self.target_pictures(batch, grid)[..., PIXELS_PER_LATENT * top :, PIXELS_PER_LATENT * left :]
        wanted = wanted[..., : decoded.shape[-2], : decoded.shape[-1]].to(self.device)
        rows, columns = (pixels_to_compare(at, window, side) for at, side in zip((top, left), sides, strict=True))
        loss = picture_loss(decoded[..., rows, columns], wanted[..., rows, columns])
        ends = ((at == 0, at + window == side) for at, side in zip((top, left), sides, strict=True))
        loss = loss + RIM_WEIGHT * rim_loss(decoded.float() - wanted, *ends)
        optimizer_step(self.optimizer, loss, self.decoder, rate_factor(progress, self.done, 20, 0.5))
        self.average.add(self.decoder)
        self.done += 1
        return loss.detach()

    def window_start(self, most: int) -> int:
        """The first row or column of a window: at one edge, the other, or anywhere."""
        return self.rng.choice((0, most, self.rng.randint(0, most)))

    def denoise_batch(self, batch: PictureBatch, grid: Grid) -> Tensor:
        """The tokens `[B, T, 64]` that the transformer makes of the batch's noise in 1, 2 or 4 steps."""
        prompts = self.conditioner.condition(self.rng, batch.icons, batch.colours)
        with conditioned_by_codes(self.transformer):
            return denoise(self.transformer, prompts, batch.noise, grid.size, self.rng.choice(STEP_COUNTS))

    def target_pictures(self, batch: PictureBatch, grid: Grid) -> Tensor:
        """The pictures of a batch on a square canvas `[B, 3, H, W]` in -1..1, moved as the noise says."""
        canvas, device = 2 * grid.side * PIXELS_PER_LATENT, self.icons.pictures.device
        backgrounds = self.colours[batch.colours.to(device)]
        pictures = render_icons(self.icons.pictures[batch.icons.to(device)], backgrounds, icon_size(canvas), canvas)
        if grid.side < SMALLEST_MOVED:
            return pictures
        moves = ((2 * batch.shifts - 1) * PIXELS_PER_LATENT).tolist()
        return torch.stack(
            [torch.roll(one, (down, right), (1, 2)) for one, (down, right) in zip(pictures, moves, strict=True)]
        )

    def finish(self) -> None:
        """Put the averaged weights in place."""
        self.average.copy_to(self.decoder)
        self.decoder.eval()

    def state(self) -> dict[str, Any]:
        """Weights, their average, optimizer and count of updates."""
        return {
            "decoder": self.decoder.state_dict(),
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        self.decoder.load_state_dict(state["decoder"])
        self.average.values = {name: value.to(self.device) for name, value in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = self.average.count = state["done"]
        self.rng = Random(self.done)


def rim_loss(difference: Tensor, rows: tuple[bool, bool], columns: tuple[bool, bool]) -> Tensor:
    """Mean absolute error of the outermost pixels where a window `[B, 3, H, W]` ends at the canvas's edge.

    `rows` and `columns` say for the window's first and last ones whether they do. Corners, where a convolution has the
    fewest neighbours, count once more, and so do the squares of `CORNER_PIXELS` pixels around them.
    """
    across = [difference[..., end, :] for end in _ends(RIM_PIXELS, rows)]
    along = [difference[..., end] for end in _ends(RIM_PIXELS, columns)]
    corners = [
        difference[..., end, other]
        for size in (RIM_PIXELS, CORNER_PIXELS)
        for end in _ends(size, rows)
        for other in _ends(size, columns)
    ]
    parts = [part.abs().mean() for part in (*across, *along, *corners)]
    return torch.stack(parts).mean() if parts else difference.new_zeros(())


def _ends(width: int, at_edge: tuple[bool, bool]) -> list[slice]:
    return [end for end, counts in zip((slice(0, width), slice(-width, None)), at_edge, strict=True) if counts]


def pixels_to_compare(first: int, window: int, side: int) -> slice:
    """The rows or columns of a decoded window that can be judged.

    Those at the canvas's edge, but not `MARGIN` pixels inside of it, whose neighbours the decoder was not given.
    """
    last = first + window == side
    return slice(0 if first == 0 else MARGIN, window * PIXELS_PER_LATENT - (0 if last else MARGIN))
