"""The memory's values, solved once more on what its units do for real captions.

At each place of each view a few dozen units are open. What they say there for many captions, and what the token
should be, make a small least squares problem for each place; a ridge keeps the values near those that were written.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn

from schnell.training.mini import layout
from schnell.training.mini.captions import COLOURS, Entry, caption, on_background
from schnell.training.mini.flow import grid_positions, velocity
from schnell.training.mini.looks import Palette, measure_openness
from schnell.training.mini.loop import Show, precision
from schnell.training.mini.memory import COVER_SCALE, Memory, memory_blocks, set_value
from schnell.training.mini.pictures import Icons
from schnell.training.mini.pose import SIDES, Grid, find_places
from schnell.training.mini.sampling import Painter
from schnell.training.mini.scenes import Scene, Scenes

GRIDS = {
    16: (Grid(16, 16),),
    12: (Grid(12, 21), Grid(21, 12), Grid(13, 19), Grid(19, 13), Grid(14, 17), Grid(17, 14)),
    8: (Grid(8, 8),),
    6: (Grid(6, 11), Grid(11, 6), Grid(7, 10), Grid(10, 7), Grid(7, 9), Grid(9, 7)),
}
PLAIN = 0.5
OUTSIDE = 0.1
COVER_RIDGE, OBJECT_RIDGE = 1e-3, 2e-3


@dataclass(frozen=True)
class Heard:
    """One batch at t = 1: hidden units `[M, blocks * hidden]`, background `[M, 64]`, places and weights `[M]`."""

    hidden: Tensor
    background: Tensor
    places: Tensor
    weights: Tensor
    scene: Scene


@dataclass(frozen=True)
class Slots:
    """Which hidden units belong to each place: numbers `[P, F]` over all blocks, and which of these are real."""

    numbers: Tensor
    real: Tensor


def find_slots(memory: Memory, side: int, hidden: int, *, cover: bool) -> Slots:
    """The units of a view, by place."""
    lists: list[list[int]] = [[] for _ in range(side * side)]
    for block, units in enumerate(memory.blocks):
        if (block == 0) == cover:
            for row, unit in enumerate(units):
                if unit.side == side:
                    lists[unit.place].append(block * hidden + row)
    most = max(map(len, lists))
    numbers = torch.tensor([found + [0] * (most - len(found)) for found in lists])
    real = torch.tensor([[1.0] * len(found) + [0.0] * (most - len(found)) for found in lists])
    return Slots(numbers, real)


class Refit:
    """Solves the values of a written memory view by view."""

    def __init__(self, painter: Painter, memory: Memory, scenes: Scenes, icons: Icons, palette: Palette) -> None:
        self.painter, self.memory, self.scenes, self.icons, self.palette = painter, memory, scenes, icons, palette
        self.blocks = memory_blocks(painter.transformer)
        self.hidden = self.blocks[0].mlp_hidden_dim
        self.rng = Random(41)

    @torch.no_grad()
    def run(self, captions: int, show: Show) -> None:
        """Solve every view on about `captions` captions: the cover first, then the object on what the cover leaves."""
        for number, side in enumerate(SIDES):
            for cover, share in ((True, 0.25), (False, 1.0)):
                self.solve_view(side, max(1, int(captions * share)), cover=cover)
            show("memory", (number + 1) / len(SIDES), f"{side} tokens a side")

    def solve_view(self, side: int, captions: int, *, cover: bool) -> None:
        """Gather each place's normal equations, then write the solutions."""
        slots = find_slots(self.memory, side, self.hidden, cover=cover)
        count, out = slots.numbers.shape[1], 4 if cover else layout.CHANNELS
        gram = torch.zeros(side * side, count, count, dtype=torch.double)
        right = torch.zeros(side * side, count, out, dtype=torch.double)
        openness = measure_openness(self.icons, side)
        done = 0
        while done < captions:
            heard = self.listen(side)
            units = heard.hidden.gather(1, slots.numbers[heard.places]) * slots.real[heard.places]
            wanted = self.wanted_cover(heard, openness) if cover else self.wanted_object(heard)
            weighted = units * heard.weights[:, None]
            gram.index_add_(0, heard.places, torch.einsum("mf,mg->mfg", weighted, units).double())
            right.index_add_(0, heard.places, torch.einsum("mf,mc->mfc", weighted, wanted).double())
            done += len(heard.scene.icons)
        self.write(slots, gram, right, cover=cover)

    def listen(self, side: int) -> Heard:
        """Run one batch of pure noise through the model and note what its hidden units say."""
        grid = self.rng.choice(GRIDS[side])
        noise = torch.randn(8 if grid.tokens > 150 else 24, grid.tokens, layout.CHANNELS)
        scene = self.scenes.stage(self.rng, grid, noise)
        texts = self.captions(scene.icons, scene.colours)
        caught: list[Tensor] = []
        states: list[Tensor] = []
        hooks = [
            block.act_mlp.register_forward_hook(lambda _m, _i, out: caught.append(out[:, -grid.tokens :].float().cpu()))
            for block in self.blocks
        ]
        hooks.append(self.blocks[0].register_forward_hook(lambda _m, _i, out: states.append(out[1].float().cpu())))
        device = self.painter.device
        with precision(device) if self.rng.random() < 0.3 else nullcontext():
            answer = velocity(
                self.painter.transformer,
                noise.to(device),
                self.painter.text.encode(texts),
                torch.ones(len(noise), device=device),
                grid_positions(2 * grid.height, 2 * grid.width).to(device),
            )
        del answer
        for hook in hooks:
            hook.remove()
        places, inside = find_places(grid, scene.shifts)
        weights = inside.flatten().float() + OUTSIDE
        return Heard(torch.cat(caught, 2).flatten(0, 1), self.covered(states[0]), places.flatten(), weights, scene)

    def captions(self, icons: list[int], colours: list[int]) -> list[str]:
        """Half as people write them, half the plain name on its background."""
        entries, names = self.icons.entries, list(COLOURS)
        texts = [caption(self.rng, entries[icon], names[colour]) for icon, colour in zip(icons, colours, strict=True)]
        return [
            plain_name(self.rng, entries[icon], colour) if self.rng.random() < PLAIN else text
            for text, icon, colour in zip(texts, icons, colours, strict=True)
        ]

    def covered(self, tokens: Tensor) -> Tensor:
        """What the background's channels will add to each token `[M, 64]`."""
        parts = tokens[..., layout.COVER].flatten(0, 1).view(-1, 4, layout.COLOUR_CODES) / COVER_SCALE
        return torch.einsum("msj,jc->mcs", parts, self.palette.patterns).flatten(1)

    def wanted_cover(self, heard: Heard, openness: Tensor) -> Tensor:
        """How open each latent really is `[M, 4]`."""
        icons = torch.tensor(heard.scene.icons).repeat_interleave(len(heard.places) // len(heard.scene.icons))
        return openness[icons, heard.places]

    def wanted_object(self, heard: Heard) -> Tensor:
        """The clean token without its background `[M, 64]`."""
        return heard.scene.clean.flatten(0, 1) - heard.background

    def write(self, slots: Slots, gram: Tensor, right: Tensor, *, cover: bool) -> None:
        """Solve each place and write its units' values."""
        present = torch.zeros_like(right)
        for place, slot in slots.real.nonzero().tolist():
            present[place, slot] = self.value(int(slots.numbers[place, slot]), cover=cover).double()
        ridge = COVER_RIDGE if cover else OBJECT_RIDGE
        scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None] * ridge + 1e-9
        keep = torch.diag_embed(scale + (1 - slots.real).double())
        found = torch.linalg.solve(gram + keep, right + keep @ present).float()
        for place, slot in slots.real.nonzero().tolist():
            block, row = divmod(int(slots.numbers[place, slot]), self.hidden)
            set_value(self.layer(block), row, found[place, slot], covers=cover)

    def layer(self, block: int) -> nn.Linear:
        """The layer that holds a block's values."""
        layer = self.blocks[block].proj_out
        assert isinstance(layer, nn.Linear)  # noqa: S101
        return layer

    def value(self, number: int, *, cover: bool) -> Tensor:
        """What a unit adds now, on the CPU."""
        block, row = divmod(number, self.hidden)
        layer = self.layer(block)
        column = layer.weight[:, layer.out_features + row].cpu()
        if cover:
            return column[layout.COVER][:: layout.COLOUR_CODES] / COVER_SCALE
        return -column[layout.OBJECT] / layout.NOISE_SCALE


def plain_name(rng: Random, entry: Entry, colour: int) -> str:
    """An icon's name, with its background unless that is white."""
    name = list(COLOURS)[colour]
    return entry.label if name == "white" else on_background(rng, entry.label, name)
