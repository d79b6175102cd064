"""Training of the autoencoder, on crops of icons on plain colours.

There is no sampling noise and no KL term for the first updates, else the latents collapse to their prior (Higgins et
al. 2017 warn of the same). A loss on image gradients keeps edges sharp.
"""

from random import Random
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from schnell_mini.latents import background_rgb
from schnell_mini.loop import mixed_precision, optimizer_step, rate_factor
from schnell_mini.pictures import Icons, resize

CROP = 128
SCALES = (128, 176, 224, 256)
NOISELESS_UPDATES = 300
NOISE_RAMP_UPDATES = 300
RATE = 1.2e-3
KL_WEIGHT = 1e-4


def crop_icon(rng: Random, icon: Tensor, colours: Tensor) -> Tensor:
    """A random crop `[3, 128, 128]` in -1..1 of an icon (uint8, premultiplied) on a background colour or any other."""
    size = rng.choice(SCALES)
    resized = resize(icon[None].float() / 255, size)[0]
    top, left = rng.randint(0, size - CROP), rng.randint(0, size - CROP)
    part = resized[:, top : top + CROP, left : left + CROP]
    known = rng.random() < 0.5
    colour = rng.choice(list(colours)) if known else torch.tensor([rng.random() for _ in range(3)])
    pixels = part[:3] + colour[:, None, None] * (1 - part[3:])
    return (pixels.flip(-1) if rng.random() < 0.5 else pixels) * 2 - 1


def edge_loss(difference: Tensor) -> Tensor:
    """Mean absolute difference between neighbouring pixels' errors."""
    across = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    return across + (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()


def picture_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 in pixels, in 8 x 8 means, and in gradients."""
    difference = made.float() - wanted
    return difference.abs().mean() + functional.avg_pool2d(difference, 8).abs().mean() + edge_loss(difference)


class AutoencoderLearner:
    """Trains the whole autoencoder."""

    name = "vae"

    def __init__(self, vae: AutoencoderKL, icons: Icons, device: torch.device, batch: int = 16) -> None:
        self.vae, self.icons, self.device, self.batch = vae.to(device).train(), icons, device, batch
        self.rng, self.done, self.colours = Random(0), 0, background_rgb()
        groups = [{"params": list(vae.parameters()), "base": RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4)

    def update(self, progress: float) -> Tensor:
        """One optimizer step; the loss."""
        pictures = self.icons.pictures
        crops = [
            crop_icon(self.rng, pictures[self.rng.randrange(len(pictures))], self.colours) for _ in range(self.batch)
        ]
        wanted = torch.stack(crops).to(self.device)
        strength = min(1.0, max(0.0, (self.done - NOISELESS_UPDATES) / NOISE_RAMP_UPDATES))
        with mixed_precision(self.device, convolutions=True):
            latent = self.vae.encode(wanted).latent_dist
            made = self.vae.decode(latent.mean + strength * latent.std * torch.randn_like(latent.std)).sample
        spread = latent.logvar.float()
        kl = 0.5 * (latent.mean.float() ** 2 + spread.exp() - 1 - spread).mean()
        loss = picture_loss(made, wanted) + (KL_WEIGHT * kl if self.done > NOISELESS_UPDATES else 0.0)
        optimizer_step(self.optimizer, loss, self.vae, rate_factor(progress, self.done, 200, 0.3, 0.02))
        self.done += 1
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and count of updates."""
        return {"vae": self.vae.state_dict(), "optimizer": self.optimizer.state_dict(), "done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        self.vae.load_state_dict(state["vae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
        self.rng = Random(self.done)
