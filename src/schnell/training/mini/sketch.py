"""The transformer starts from a rough sketch of every icon, not from noise.

From nothing, a flow loss teaches last of all where a token lies and what the text puts there: for thousands of updates
every name is the same blob. Both parts can be had at once. A picture's tokens are a sum of cosines over the
canvas, each with one direction in the 64 channels (the strongest of a singular value decomposition for each frequency).
The transformer's last layer multiplies its inputs by factors that it computes from CLIP's pooled text and the time, so:

- the double blocks learn to hand on the noisy token and the values of the cosines at its place (a regression);
- the text's factors learn the icon's coefficients (a regression on 256 numbers a caption, hence fast);
- the last layer is written down, and the single blocks start closed, to be opened by the flow loss.

What comes out solves v = (x_t - x_0) / t with x_0 a blurred picture. The flow's training then adds the rest.
"""

from dataclasses import dataclass
from math import pi, sqrt
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from schnell.training.mini.flow import CANVASES, SQUARE, Canvas, Dealer, Sample, TextModels, grid_positions, velocity
from schnell.training.mini.latents import Encoded, pack
from schnell.training.mini.loop import rate, step
from schnell.training.mini.tokens import token_ids

WAVES = 8
FILL = 8
NOISE_SCALE = 0.5
TRUNK_RATE = 1.5e-3
FACTOR_RATE = 3e-3
EDGE = 1 - 1 / 16
TIMES = ((1.0, 0.55), (0.75, 0.2), (0.5, 0.15), (0.25, 0.1))


@dataclass(frozen=True)
class Atoms:
    """Cosines with a channel direction each: numbers `[K]` of the wave pair, directions `[K, 64]` and signs `[K]`.

    `amounts` `[N, K]` and `means` `[N, 64]` are each training picture's coefficients.
    """

    waves: Tensor
    directions: Tensor
    signs: Tensor
    amounts: Tensor
    means: Tensor

    @property
    def sizes(self) -> Tensor:
        """The root mean square of each atom's amounts `[K]`."""
        return self.amounts.pow(2).mean(0).sqrt().clamp_min(1e-4)

    def values(self, canvas: Canvas, positions: Tensor) -> Tensor:
        """The atoms' cosines `[T, K]` at tokens of a canvas; they span its largest centred square."""
        half = min(canvas.height, canvas.width) / 4
        centre = positions.new_tensor([canvas.height / 4 - 0.5, canvas.width / 4 - 0.5])
        places = ((positions[:, 1:] - centre) / half).clamp(-EDGE, EDGE)
        waves = cosines((places + 1) / 2)
        return waves[:, 0, self.waves // WAVES] * waves[:, 1, self.waves % WAVES] * self.signs

    @property
    def energy(self) -> float:
        """What the squares of a token's inner values sum to, filling included."""
        values = self.values(SQUARE[0], grid_positions(SQUARE[0].height, SQUARE[0].width))
        return 1.02 * float((values.pow(2).sum(1) + values.sum(1).pow(2) / FILL).max())

    def spread(self, noisy: int) -> float:
        """The standard deviation of a token's inner values, which the last layer's norm divides by."""
        width = noisy + len(self.waves) + FILL
        return sqrt((self.energy + NOISE_SCALE**2 * noisy) / width)


def cosines(places: Tensor) -> Tensor:
    """The first eight cosines of places in 0..1 with mean square 1: `[..., 8]`."""
    orders = torch.arange(WAVES)
    return (places[..., None] * orders * pi).cos() * torch.where(orders > 0, sqrt(2.0), 1.0)


def find_atoms(views: list[Encoded], count: int) -> Atoms:
    """The `count` strongest atoms of square views (latents `[N, 16, S, S]`)."""
    tokens = pack(torch.cat([view.latents for view in views]).float())
    side = int(sqrt(tokens.shape[1]))
    waves = cosines((torch.arange(side) + 0.5) / side) / side
    grid = tokens.view(len(tokens), side, side, -1)
    spectrum = torch.einsum("nyxc,ya,xb->nabc", grid, waves, waves).flatten(1, 2)
    found: list[tuple[float, int, Tensor]] = []
    for wave in range(1, WAVES * WAVES):
        _, strength, directions = torch.linalg.svd(spectrum[:, wave], full_matrices=False)
        found += [(float(s), wave, d) for s, d in zip(strength, directions, strict=True)]
    found = sorted(found, key=lambda atom: -atom[0])[:count]
    signs = torch.sign(torch.randn(count, generator=torch.Generator().manual_seed(4)))
    numbers = torch.tensor([wave for _, wave, _ in found])
    directions = torch.stack([direction for _, _, direction in found])
    amounts = torch.stack([spectrum[:, wave] @ direction for _, wave, direction in found], 1)
    return Atoms(numbers, directions * signs[:, None], signs, amounts, spectrum[:, 0])


def inner_values(atoms: Atoms, canvas: Canvas, sample: Sample, noisy: Tensor) -> Tensor:
    """What the double blocks shall hand on `[B, T, width]`: noisy token, cosines, and a filling.

    The filling makes every token's values sum to 0 and their squares to the same, so that the norm changes nothing.
    """
    values = atoms.values(canvas, sample.positions.cpu())
    middle = -values.sum(1, keepdim=True) / FILL
    apart = ((atoms.energy - values.pow(2).sum(1, keepdim=True)) / FILL - middle**2).clamp_min(0).sqrt()
    filling = torch.cat([(middle + apart).expand(-1, FILL // 2), (middle - apart).expand(-1, FILL // 2)], 1)
    fixed = torch.cat([values, filling], 1).to(noisy.device)
    return torch.cat([NOISE_SCALE * noisy, fixed.expand(len(noisy), -1, -1)], -1)


def prepare_trunk(transformer: FluxTransformer2DModel) -> None:
    """Hand tokens in as they are, and make the double blocks independent of text and time for now."""
    width = transformer.x_embedder.out_features
    channels = transformer.x_embedder.in_features
    with torch.no_grad():
        transformer.x_embedder.weight.copy_(NOISE_SCALE * torch.eye(width, channels))
        transformer.x_embedder.bias.zero_()
        for block in transformer.transformer_blocks:
            for norm in (block.norm1, block.norm1_context):
                norm.linear.weight.zero_()
                gates = norm.linear.bias.view(6, width)
                gates.zero_()
                gates[[2, 5]] = 1.0


def write_last_layer(transformer: FluxTransformer2DModel, atoms: Atoms) -> None:
    """The output layer that adds up noise and atoms, and single blocks that do nothing yet."""
    channels = transformer.x_embedder.in_features
    width, count = transformer.x_embedder.out_features, len(atoms.waves)
    spread = atoms.spread(channels)
    with torch.no_grad():
        weight = transformer.proj_out.weight
        weight.zero_()
        transformer.proj_out.bias.zero_()
        weight[:, :channels] = torch.eye(channels) * spread / NOISE_SCALE
        weight[:, channels : channels + count] = (atoms.directions * (atoms.sizes * spread)[:, None]).T
        for block in transformer.single_transformer_blocks:
            block.norm.linear.weight[2 * width :].zero_()
            block.norm.linear.bias[2 * width :].zero_()


class TrunkLearner:
    """Teaches the double blocks to hand on token and place."""

    name = "sketch, places"

    def __init__(
        self, transformer: FluxTransformer2DModel, atoms: Atoms, text: TextModels, dealer: Dealer, device: torch.device
    ) -> None:
        self.transformer, self.atoms, self.text, self.dealer = transformer.to(device), atoms, text, dealer
        self.device, self.done, self.tokens = device, 0, torch.empty(0)
        self.blocks = transformer.transformer_blocks
        groups = [{"params": list(self.blocks.parameters()), "base": TRUNK_RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=TRUNK_RATE, betas=(0.9, 0.98), weight_decay=0.0)

    def update(self, progress: float) -> float:
        """One optimizer step; the loss."""
        squares = self.done % 4 > 0
        canvas = self.dealer.choose(SQUARE if squares else CANVASES)
        sample = self.dealer.deal(canvas, 4, 128).to(self.device)
        times = sample.times[:, None, None]
        noisy = (1 - times) * sample.clean + times * sample.noise
        error = (self.handed_on(sample, noisy) - inner_values(self.atoms, canvas, sample, noisy)).pow(2)
        channels = noisy.shape[-1]
        loss = 4 * error[..., :channels].mean() + error[..., channels:].mean()
        step(self.optimizer, loss, self.blocks, rate(progress, self.done, 20, 0.4))
        self.done += 1
        return float(loss.detach())

    def handed_on(self, sample: Sample, noisy: Tensor) -> Tensor:
        """The image tokens that leave the last double block."""
        kept = self.transformer.single_transformer_blocks
        caught: list[Tensor] = []
        hook = self.blocks[-1].register_forward_hook(lambda _block, _inputs, outputs: caught.append(outputs[1]))
        self.transformer.single_transformer_blocks = nn.ModuleList()
        try:
            velocity(self.transformer, noisy, self.text.encode(sample.texts), sample.times, sample.positions)
        finally:
            self.transformer.single_transformer_blocks = kept
            hook.remove()
        return caught[0]

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and count of updates."""
        return {
            "transformer": self.transformer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        self.transformer.load_state_dict(state["transformer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
        self.dealer.reseed(self.done)


@dataclass(frozen=True)
class Captions:
    """CLIP's pooled vectors `[M, D]` of captions and the number of each one's picture in `Atoms.amounts`."""

    pooled: Tensor
    pictures: Tensor


@torch.no_grad()
def read_captions(text: TextModels, dealer: Dealer, views: list[Encoded], rounds: int, batch: int = 100) -> Captions:
    """`rounds` captions of every picture of the views, in the order of `find_atoms`."""
    colours = torch.cat([view.colours for view in views]).tolist()
    icons = len(views[0].colours)
    pooled, pictures = [], []
    for _ in range(rounds):
        for start in range(0, len(colours), batch):
            chosen = list(range(start, min(len(colours), start + batch)))
            texts = dealer.write([i % icons for i in chosen], [colours[i] for i in chosen])
            ids = token_ids(text.tokenizers[0], texts).to(text.clip.device)
            pooled.append(text.clip(input_ids=ids).pooler_output)
            pictures += chosen
    return Captions(torch.cat(pooled), torch.tensor(pictures))


class FactorLearner:
    """Teaches the text's and time's way into the last layer the amounts of each icon's atoms."""

    name = "sketch, factors"

    def __init__(
        self, transformer: FluxTransformer2DModel, atoms: Atoms, captions: Captions, device: torch.device
    ) -> None:
        self.captions, self.device, self.done = captions, device, 0
        self.network = nn.ModuleDict({"text": transformer.time_text_embed, "last": transformer.norm_out.linear})
        self.network.to(device)
        nn.init.normal_(transformer.norm_out.linear.weight, std=0.02)
        nn.init.zeros_(transformer.norm_out.linear.bias)
        self.channels = transformer.x_embedder.in_features
        self.ratio = atoms.spread(self.channels) / NOISE_SCALE
        self.amounts, self.means = (atoms.amounts / atoms.sizes).to(device), atoms.means.to(device)
        self.weights = atoms.sizes.pow(2).to(device)
        groups = [{"params": list(self.network.parameters()), "base": FACTOR_RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=FACTOR_RATE, betas=(0.9, 0.99), weight_decay=1e-4)

    def update(self, progress: float) -> float:
        """One optimizer step; the loss."""
        chosen = torch.randint(0, len(self.captions.pictures), (192,))
        values, odds = (torch.tensor(column) for column in zip(*TIMES, strict=True))
        times = values[torch.multinomial(odds, len(chosen), replacement=True)]
        times = torch.where(torch.rand(len(chosen)) < 0.85, times, 0.02 + 0.98 * torch.rand(len(chosen)))
        pictures = self.captions.pictures[chosen].to(self.device)
        loss = self.error(self.captions.pooled[chosen].to(self.device), pictures, times.to(self.device)).mean()
        step(self.optimizer, loss, self.network, rate(progress, self.done, 50, 0.0, 0.003))
        self.done += 1
        return float(loss.detach())

    def error(self, pooled: Tensor, pictures: Tensor, times: Tensor) -> Tensor:
        """The squared error of the velocity, without what only the double blocks do: `[B]`."""
        out = self.network["last"](functional.silu(self.network["text"](times * 1000, pooled)))
        scale, shift = out.chunk(2, 1)
        inverse, first, last = 1 / times[:, None], self.channels, self.channels + self.amounts.shape[1]
        noise = (scale[:, :first] + 1 - inverse).pow(2).sum(1)
        sketch = ((scale[:, first:last] + 1 + self.amounts[pictures] * inverse).pow(2) * self.weights).sum(1)
        ground = (shift[:, :first] * self.ratio + self.means[pictures] * inverse).pow(2).sum(1)
        total: Tensor = (noise + sketch + ground) / first * times.pow(2)
        return total

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and count of updates."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
