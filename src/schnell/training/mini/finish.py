"""The decoder's last polish: latents as the transformer draws them, pictures as they should be.

Since a picture follows from its text, the latents that the model itself draws for a name have a right answer. The
decoder learns to give it, half of the time; the other half it learns from clean latents, so that reconstruction
improves as well. The encoder and the latents stay as they are.
"""

from collections.abc import Mapping
from random import Random
from typing import Any

import torch
from torch import Tensor

from schnell.training.mini.captions import COLOURS, on_background
from schnell.training.mini.latents import Encoded, palette
from schnell.training.mini.loop import Average, precision, rate, step
from schnell.training.mini.pictures import Icons, compose
from schnell.training.mini.sampling import Painter, denoise, start_noise
from schnell.training.mini.vae import picture_loss

RATE = 3e-4
WINDOW = 16
DRAWN_STEPS = (1, 2, 4, 4)


class DecoderLearner:
    """Trains `vae.decoder` on windows of 128 pixels."""

    name = "decoder"

    def __init__(self, painter: Painter, icons: Icons, views: Mapping[str, Encoded], device: torch.device) -> None:
        self.painter, self.icons, self.views, self.device = painter, icons, views, device
        self.decoder = painter.vae.decoder.train()
        self.rng, self.done, self.batch = Random(0), 0, 8
        self.average = Average(self.decoder, 0.99)
        groups = [{"params": list(self.decoder.parameters()), "base": RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99))

    def update(self, progress: float) -> float:
        """One optimizer step; the loss."""
        latents, wanted = self.drawn() if self.done % 2 else self.encoded()
        config = self.painter.vae.config
        scaled = latents.to(self.device) / config["scaling_factor"] + config["shift_factor"]
        with precision(self.device):
            made = self.decoder(scaled)
        loss = picture_loss(made, wanted.to(self.device))
        step(self.optimizer, loss, self.decoder, rate(progress, self.done, 20, 0.5))
        self.average.add(self.decoder)
        self.done += 1
        return float(loss.detach())

    def encoded(self) -> tuple[Tensor, Tensor]:
        """Windows of clean latents and their pictures."""
        view = self.views[self.rng.choice(["white", "colour"])]
        chosen = [self.rng.randrange(len(self.icons)) for _ in range(self.batch)]
        return self.windows(view.latents[chosen].float(), self.pixels(view, chosen))

    def drawn(self) -> tuple[Tensor, Tensor]:
        """Windows of latents that the transformer draws for names, and the pictures that were meant."""
        view = self.views[self.rng.choice(["white", "colour"])]
        chosen = [self.rng.randrange(len(self.icons)) for _ in range(self.batch)]
        names = [list(COLOURS)[c] for c in view.colours[chosen].tolist()]
        texts = [on_background(self.rng, self.icons.entries[i].label, n) for i, n in zip(chosen, names, strict=True)]
        noise = start_noise([self.rng.randrange(2**31) for _ in chosen], *view.latents.shape[-2:])
        latents = denoise(self.painter, self.painter.text.encode(texts), noise, self.rng.choice(DRAWN_STEPS))
        return self.windows(latents.float().cpu(), self.pixels(view, chosen))

    def pixels(self, view: Encoded, chosen: list[int]) -> Tensor:
        """The view's pictures of the chosen icons."""
        return compose(self.icons.pictures[chosen], palette()[view.colours[chosen]], view.pose, view.canvas)

    def windows(self, latents: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The same random square of latents and of pixels."""
        top, left = (self.rng.randint(0, latents.shape[-1] - WINDOW) for _ in range(2))
        part = latents[..., top : top + WINDOW, left : left + WINDOW]
        top, left, size = top * 8, left * 8, WINDOW * 8
        return part, pixels[..., top : top + size, left : left + size]

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
