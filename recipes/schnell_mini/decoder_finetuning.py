"""The decoder's last polish: latents as the transformer draws them, pictures as they should be, up to their edges.

Since a picture follows from its text and its noise, the latents that the model itself draws for a name have a right
answer. The decoder learns to give it, two times of three; the third time it learns from clean latents, so that
reconstruction improves as well. Windows often lie at the canvas's edge, where a convolution that was trained on
crops leaves a rim: the outermost pixels, and corners above all, count more. The encoder and the latents stay as they
are.
"""

from random import Random
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor

from schnell_mini.autoencoder import picture_loss
from schnell_mini.code_conditioning import Teller, told_by_codes
from schnell_mini.latents import FACTOR, centred_pose, palette, unpack
from schnell_mini.loop import Average, precision, rate, step
from schnell_mini.picture_dataset import Scene, Scenes
from schnell_mini.pictures import Icons, compose
from schnell_mini.placement import MOVING, Grid
from schnell_mini.sampling import flow

RATE = 4e-4
WINDOW = 16
MARGIN = 24
RIM, RIM_WEIGHT = 2, 0.3
CORNER = 24
DRAWN_STEPS = (1, 2, 4, 4)
GRIDS = (Grid(16, 16),) * 4 + (Grid(12, 12), Grid(8, 8), Grid(8, 8), Grid(6, 6))
BATCH = {"cuda": 64, "cpu": 6}


class DecoderLearner:
    """Trains `vae.decoder` on windows of 128 pixels, or on the whole canvas where that is smaller."""

    name = "decoder"

    def __init__(
        self, vae: AutoencoderKL, transformer: FluxTransformer2DModel, teller: Teller, scenes: Scenes, icons: Icons
    ) -> None:
        self.vae, self.transformer, self.teller, self.scenes, self.icons = vae, transformer, teller, scenes, icons
        self.device = transformer.device
        self.decoder = vae.decoder.to(memory_format=torch.channels_last).requires_grad_(requires_grad=True).train()
        self.rng, self.done, self.batch = Random(0), 0, BATCH[self.device.type]
        self.colours = palette().to(icons.pictures.device)
        self.average = Average(self.decoder, 0.99)
        groups = [{"params": list(self.decoder.parameters()), "base": RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99))

    def update(self, progress: float) -> Tensor:
        """One optimizer step; the loss."""
        grid = self.rng.choice(GRIDS)
        scene = self.scenes.stage(self.rng, grid, self.batch)
        tokens = self.draw(scene, grid) if self.done % 3 else scene.clean
        latents = unpack(tokens, 2 * grid.height, 2 * grid.width)
        window = min(WINDOW, latents.shape[-1])
        top, left = (self.corner(side - window) for side in latents.shape[-2:])
        config = self.vae.config
        part = latents[..., top : top + window, left : left + window].to(memory_format=torch.channels_last)
        with precision(self.device, convolutions=True):
            made = self.decoder(part / config["scaling_factor"] + config["shift_factor"])
        rows, columns = (seen(first, window, side) for first, side in zip((top, left), latents.shape[-2:], strict=True))
        wanted = self.pixels(scene, grid)[..., FACTOR * top :, FACTOR * left :].to(self.device)
        loss = picture_loss(made[..., rows, columns], wanted[..., rows, columns])
        ends = tuple(
            (first == 0, first + window == side) for first, side in zip((top, left), latents.shape[-2:], strict=True)
        )
        loss = loss + RIM_WEIGHT * rim_loss(made.float() - wanted[..., : made.shape[-2], : made.shape[-1]], *ends)
        step(self.optimizer, loss, self.decoder, rate(progress, self.done, 20, 0.5))
        self.average.add(self.decoder)
        self.done += 1
        return loss.detach()

    def corner(self, most: int) -> int:
        """The first row or column of a window: at one edge, the other, or anywhere."""
        return self.rng.choice((0, most, self.rng.randint(0, most)))

    def draw(self, scene: Scene, grid: Grid) -> Tensor:
        """The tokens that the transformer draws of the scene from its very noise."""
        told = self.teller.tell(self.rng, scene.icons, scene.colours)
        with told_by_codes(self.transformer):
            return flow(self.transformer, told, scene.noise, (grid.height, grid.width), self.rng.choice(DRAWN_STEPS))

    def pixels(self, scene: Scene, grid: Grid) -> Tensor:
        """The pictures of a square scene, moved as its noise says."""
        canvas, place = 2 * grid.side * FACTOR, self.icons.pictures.device
        backgrounds = self.colours[scene.colours.to(place)]
        pictures = compose(self.icons.pictures[scene.icons.to(place)], backgrounds, centred_pose(canvas), canvas)
        if grid.side < MOVING:
            return pictures
        moves = ((2 * scene.shifts - 1) * FACTOR).tolist()
        return torch.stack(
            [torch.roll(one, (down, right), (1, 2)) for one, (down, right) in zip(pictures, moves, strict=True)]
        )

    def finish(self) -> None:
        """Put the averaged weights in place."""
        self.average.copy_to(self.decoder)
        self.decoder.eval()

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and count of updates."""
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

    `rows` and `columns` say at which of their two ends. Corners, where a convolution sees least, count once more, and
    so do the squares of `CORNER` pixels around them.
    """
    across = [difference[..., end, :] for end in _ends(RIM, rows)]
    along = [difference[..., end] for end in _ends(RIM, columns)]
    corners = [
        difference[..., end, other]
        for size in (RIM, CORNER)
        for end in _ends(size, rows)
        for other in _ends(size, columns)
    ]
    parts = [part.abs().mean() for part in (*across, *along, *corners)]
    return torch.stack(parts).mean() if parts else difference.new_zeros(())


def _ends(width: int, there: tuple[bool, bool]) -> list[slice]:
    return [end for end, is_there in zip((slice(0, width), slice(-width, None)), there, strict=True) if is_there]


def seen(first: int, window: int, side: int) -> slice:
    """The window's pixels that count: all at the canvas's edge, not those that lack their neighbours inside."""
    last = first + window == side
    return slice(0 if first == 0 else MARGIN, window * FACTOR - (0 if last else MARGIN))
