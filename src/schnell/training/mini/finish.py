"""The decoder's last polish: latents as the transformer draws them, pictures as they should be, up to their edges.

Since a picture follows from its text and its noise, the latents that the model itself draws for a name have a right
answer. The decoder learns to give it, half of the time; the other half it learns from clean latents, so that
reconstruction improves as well. Windows often lie at the canvas's edge, where a convolution that was trained on
crops leaves a rim. The encoder and the latents stay as they are.
"""

from random import Random
from typing import Any

import torch
from torch import Tensor

from schnell.training.mini.captions import COLOURS, on_background
from schnell.training.mini.latents import FACTOR, centred_pose, pack, palette, unpack
from schnell.training.mini.layout import CHANNELS
from schnell.training.mini.loop import Average, precision, rate, step
from schnell.training.mini.pictures import Icons, compose
from schnell.training.mini.pose import MOVING, Grid
from schnell.training.mini.sampling import Painter, denoise
from schnell.training.mini.scenes import Scene, Scenes
from schnell.training.mini.vae import picture_loss

RATE = 2e-4
WINDOW = 16
MARGIN = 24
DRAWN_STEPS = (1, 2, 4, 4)
GRIDS = (Grid(16, 16), Grid(16, 16), Grid(16, 16), Grid(12, 12), Grid(8, 8))


class DecoderLearner:
    """Trains `vae.decoder` on windows of 128 pixels."""

    name = "decoder"

    def __init__(self, painter: Painter, icons: Icons, scenes: Scenes, device: torch.device) -> None:
        self.painter, self.icons, self.scenes, self.device = painter, icons, scenes, device
        self.decoder = painter.vae.decoder.to(memory_format=torch.channels_last).train()
        self.rng, self.done, self.batch = Random(0), 0, 6
        self.average = Average(self.decoder, 0.98)
        groups = [{"params": list(self.decoder.parameters()), "base": RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99))

    def update(self, progress: float) -> float:
        """One optimizer step; the loss."""
        grid = self.rng.choice(GRIDS)
        noise = torch.randn(self.batch, grid.tokens, CHANNELS)
        scene = self.scenes.stage(self.rng, grid, noise)
        tokens = self.draw(scene, grid, noise) if self.done % 2 else scene.clean
        latents = unpack(tokens, 2 * grid.height, 2 * grid.width)
        top, left = (self.corner(side - WINDOW) for side in latents.shape[-2:])
        config = self.painter.vae.config
        part = latents[..., top : top + WINDOW, left : left + WINDOW].to(self.device, memory_format=torch.channels_last)
        with precision(self.device, convolutions=True):
            made = self.decoder(part / config["scaling_factor"] + config["shift_factor"])
        rows, columns = (seen(first, side) for first, side in zip((top, left), latents.shape[-2:], strict=True))
        wanted = self.pixels(scene, grid)[..., FACTOR * top :, FACTOR * left :].to(self.device)
        loss = picture_loss(made[..., rows, columns], wanted[..., rows, columns])
        step(self.optimizer, loss, self.decoder, rate(progress, self.done, 20, 0.5))
        self.average.add(self.decoder)
        self.done += 1
        return float(loss.detach())

    def corner(self, most: int) -> int:
        """The first row or column of a window: at one edge, the other, or anywhere."""
        return self.rng.choice((0, most, self.rng.randint(0, most)))

    def draw(self, scene: Scene, grid: Grid, noise: Tensor) -> Tensor:
        """The tokens that the transformer draws for the names from this very noise."""
        names = list(COLOURS)
        texts = [
            on_background(self.rng, self.icons.entries[icon].label, names[colour])
            for icon, colour in zip(scene.icons, scene.colours, strict=True)
        ]
        told = self.painter.text.encode(texts)
        start = unpack(noise, 2 * grid.height, 2 * grid.width)
        drawn = denoise(self.painter, told, start, self.rng.choice(DRAWN_STEPS))
        return pack(drawn.float().cpu())

    def pixels(self, scene: Scene, grid: Grid) -> Tensor:
        """The pictures of a square scene, moved as its noise says."""
        canvas = 2 * grid.side * FACTOR
        backgrounds = palette()[scene.colours]
        pictures = compose(self.icons.pictures[scene.icons], backgrounds, centred_pose(canvas), canvas)
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


def seen(first: int, side: int) -> slice:
    """The window's pixels that count: all at the canvas's edge, not those that lack their neighbours inside."""
    last = first + WINDOW == side
    return slice(0 if first == 0 else MARGIN, WINDOW * FACTOR - (0 if last else MARGIN))
