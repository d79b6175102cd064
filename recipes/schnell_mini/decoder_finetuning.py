"""Finetuning of the decoder on latents as they are drawn, for the pictures that they should be, until these are crisp.

Pixels alone teach it to draw an edge that may lie here or there as its mean, which is soft. So two more things count:
how much edge there is in each square of 8 pixels, wherever in it that lies, and the verdict of a critic. Windows often
lie at the canvas's edge: a decoder that was trained on crops draws a visible rim there, so the outermost pixels count
more, and corners most. The encoder, and with it the latents, do not change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from schnell_mini.autoencoder import picture_loss
from schnell_mini.critic import LEAST_EDGE, SQUARE, Critic, balance_weight, critic_loss, criticism, edge_strength
from schnell_mini.drawn_pictures import DrawnPicture, Studio, collect_pictures
from schnell_mini.latents import PIXELS_PER_LATENT
from schnell_mini.loop import (
    MovingAverage,
    Show,
    StageBudget,
    mixed_precision,
    optimizer_step,
    rate_factor,
    run_learner,
    write_state,
)

RATE, CRITIC_RATE = 4e-4, 1e-3
WINDOW = 16
MARGIN = 24
RIM_PIXELS, RIM_WEIGHT = 2, 0.8
CORNER_PIXELS = 24
BATCH_SIZES = {"cuda": 64, "cpu": 8}
SMALL_SHARE = 0.12
EDGE_WEIGHT = 1.5
#: How much more plain grounds count: a critic that sharpens objects leaves rings and frames on them.
PLAIN_WEIGHT = 3.0
#: The critic's pull as a share of the pixels', the updates before it counts, and between two measurements of both.
CRITIC_SHARE, CRITIC_ALONE, CRITIC_RAMP, CRITIC_EVERY = 0.35, 100, 200, 25
#: How much stronger details are drawn in the end than they were learned.
DETAIL = 0.1


@dataclass(frozen=True)
class Windows:
    """Latents `[B, 16, h, w]`, their pictures `[B, 3, 8h, 8w]` in -1..1, and which pixels count `[B, 1, 8h, 8w]`.

    `ends` says of each window whether its first row, last row, first column and last column lie at the canvas's edge.
    """

    latents: Tensor
    pictures: Tensor
    counted: Tensor
    ends: tuple[tuple[bool, bool, bool, bool], ...]


def finetune_decoder(studio: Studio, work: Path, budget: StageBudget, share: float, show: Show) -> AutoencoderKL:
    """The autoencoder with its decoder finetuned; what was drawn and the state are kept in the work folder."""
    kept = work / "drawn.pt"
    if not kept.exists():
        drawn = collect_pictures(studio, share, show)
        write_state({"pictures": [(each.latents, each.picture) for each in drawn]}, kept)
    pictures = [DrawnPicture(*pair) for pair in torch.load(kept, weights_only=True)["pictures"]]
    learner = DecoderLearner(studio.vae, pictures)
    (work / "state").mkdir(exist_ok=True)
    run_learner(learner, budget, work / "state/decoder.pt", show)
    learner.finish()
    return studio.vae


def write_weights(network: nn.Module, folder: Path) -> None:
    """Write a network's weights in half precision; its configuration, which stays as it was, keeps its words."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous().cpu() for name, value in network.state_dict().items()}
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


class DecoderLearner:
    """Trains `vae.decoder` on windows of 128 pixels, or on the whole canvas where that is smaller."""

    name = "decoder"

    def __init__(self, vae: AutoencoderKL, pictures: Sequence[DrawnPicture]) -> None:
        self.vae, self.device = vae, vae.device
        self.decoder = vae.decoder.to(memory_format=torch.channels_last).requires_grad_(requires_grad=True).train()
        self.critic = Critic().to(self.device).train()
        self.large = [each for each in pictures if min(each.latents.shape[-2:]) >= WINDOW]
        small = [each for each in pictures if min(each.latents.shape[-2:]) < WINDOW]
        shapes = {each.latents.shape for each in small}
        self.small = [[each for each in small if each.latents.shape == shape] for shape in sorted(shapes)]
        self.rng, self.done, self.batch, self.weight = Random(0), 0, BATCH_SIZES[self.device.type], 0.0
        self.average = MovingAverage(self.decoder, 0.995)
        groups = [{"params": list(self.decoder.parameters()), "base": RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-5)
        critics = [{"params": list(self.critic.parameters()), "base": CRITIC_RATE}]
        self.critic_optimizer = torch.optim.AdamW(critics, lr=CRITIC_RATE, betas=(0.5, 0.95))

    def update(self, progress: float) -> Tensor:
        """One optimizer step of the decoder and one of the critic; the loss of pixels and edges."""
        windows = self.sample_windows()
        config: Any = self.vae.config
        latents = windows.latents.to(self.device, memory_format=torch.channels_last)
        with mixed_precision(self.device, convolutions=True):
            decoded = self.decoder(latents / config["scaling_factor"] + config["shift_factor"]).float()
        wanted, counted = windows.pictures.to(self.device), windows.counted.to(self.device)
        made = torch.where(counted, decoded, wanted)
        pixels = picture_loss(made, wanted)
        rims = [
            rim_loss(one[None], ends[:2], ends[2:]) for one, ends in zip(decoded - wanted, windows.ends, strict=True)
        ]
        edges = (edge_strength(made) - edge_strength(wanted)).abs().mean()
        plain = pixels + RIM_WEIGHT * torch.stack(rims).mean() + EDGE_WEIGHT * edges
        plain = plain + PLAIN_WEIGHT * ground_loss(made, wanted)
        critique = criticism(self.critic, made, wanted)
        ramp = min(1.0, max(0.0, (self.done - CRITIC_ALONE) / CRITIC_RAMP))
        if ramp > 0 and self.done % CRITIC_EVERY == 0:
            self.weight += 0.3 * (balance_weight(pixels, critique, self.decoder.conv_out.weight) - self.weight)
        factor = rate_factor(progress, self.done, 50, 0.4)
        optimizer_step(self.optimizer, plain + ramp * CRITIC_SHARE * self.weight * critique, self.decoder, factor)
        optimizer_step(self.critic_optimizer, critic_loss(self.critic, made, wanted), self.critic, 1.0)
        self.average.add(self.decoder)
        self.done += 1
        return plain.detach()

    def sample_windows(self) -> Windows:
        """A batch of windows of large canvases, or of whole small ones of one size."""
        rng = self.rng
        if not self.large or (self.small and rng.random() < SMALL_SHARE):
            chosen = rng.choices(rng.choice(self.small), k=self.batch)
        else:
            chosen = rng.choices(self.large, k=self.batch)
        parts = [self.cut_window(each) for each in chosen]
        latents, pictures, counted, ends = zip(*parts, strict=True)
        return Windows(torch.stack(latents), torch.stack(pictures), torch.stack(counted), ends)

    def cut_window(self, drawn: DrawnPicture) -> tuple[Tensor, Tensor, Tensor, tuple[bool, bool, bool, bool]]:
        """One window with its picture, the pixels that can be judged, and which of its ends are the canvas's."""
        sides = drawn.latents.shape[-2:]
        sizes = [min(WINDOW, side) if min(sides) >= WINDOW else side for side in sides]
        top, left = (self.window_start(side - size) for side, size in zip(sides, sizes, strict=True))
        rows, columns = slice(top, top + sizes[0]), slice(left, left + sizes[1])
        pixel_rows, pixel_columns = (
            slice(PIXELS_PER_LATENT * at.start, PIXELS_PER_LATENT * at.stop) for at in (rows, columns)
        )
        picture = drawn.picture[:, pixel_rows, pixel_columns].float() / 127.5 - 1
        counted = torch.zeros(1, *picture.shape[1:], dtype=torch.bool)
        judged = (
            pixels_to_compare(at.start, at.stop - at.start, side)
            for at, side in zip((rows, columns), sides, strict=True)
        )
        counted[(slice(None), *judged)] = True
        ends = (top == 0, rows.stop == sides[0], left == 0, columns.stop == sides[1])
        return drawn.latents[:, rows, columns].float(), picture, counted, ends

    def window_start(self, most: int) -> int:
        """The first row or column of a window: at one edge, the other, or anywhere."""
        return self.rng.choice((0, most, self.rng.randint(0, most)))

    def finish(self) -> None:
        """Put the averaged weights in place, and raise details."""
        self.average.copy_to(self.decoder)
        raise_details(self.decoder.conv_out)
        self.decoder.eval()

    def state(self) -> dict[str, Any]:
        """Weights, their average, optimizers and count of updates."""
        parts = ("decoder", "critic", "optimizer", "critic_optimizer")
        states = {part: getattr(self, part).state_dict() for part in parts}
        return {**states, "average": self.average.values, "weight": self.weight, "done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        for part in ("decoder", "critic", "optimizer", "critic_optimizer"):
            getattr(self, part).load_state_dict(state[part])
        self.average.values = {name: value.to(self.device) for name, value in state["average"].items()}
        self.weight, self.done = state["weight"], state["done"]
        self.average.count = self.done
        self.rng = Random(self.done)


@torch.no_grad()
def raise_details(last: nn.Conv2d, amount: float = DETAIL) -> None:
    """Let the decoder's last convolution answer to details more strongly, and to even areas as it did.

    It is unsharp masking: what was learned from latents that are a little wrong is softer than the pictures are.
    """
    weight = last.weight
    weight += amount * (weight - weight.mean((2, 3), keepdim=True))


def ground_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """The absolute error of pictures `[B, 3, H, W]` where the wanted one shows nothing, as a mean over all pixels."""
    ground = (edge_strength(wanted) < LEAST_EDGE).float()
    return ((made - wanted).abs() * functional.interpolate(ground, scale_factor=SQUARE)).mean()


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
