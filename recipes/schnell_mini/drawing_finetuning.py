"""Finetuning of the drawing blocks on prompts as CLIP really reads them.

`drawing_blocks` trains them on codes, which CLIP reads nearly. Here channels of the latents count as much as they are
seen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor

from schnell.engine.denoise import position_ids
from schnell_mini import layout
from schnell_mini.captions import COLOURS, IconLabel, decorate, on_background
from schnell_mini.drawing_blocks import LearnerOfBlocks, reopen_block
from schnell_mini.loop import mixed_precision, optimizer_step, rate_factor
from schnell_mini.picture_dataset import PictureDataset
from schnell_mini.placement import Grid
from schnell_mini.sampling import decode_pixels
from schnell_mini.text_models import TextModels

#: With eight pictures a batch, as on a CPU, four times this rate undoes what large batches taught.
RATE, AVERAGED = 1.2e-4, 0.99
TOKENS_PER_BATCH = {"cuda": 20_000, "cpu": 2_400}
#: Grids, each with its share of the batches.
GRIDS = (
    (Grid(16, 16), 10),
    (Grid(8, 8), 4),
    *((Grid(*sides), 1) for sides in ((12, 21), (21, 12), (13, 19), (19, 13), (14, 17), (17, 14), (12, 12))),
    *((Grid(*sides), 0.5) for sides in ((6, 11), (11, 6), (7, 10), (10, 7), (7, 9), (9, 7), (6, 6))),
)
CODE_JITTER = 0.15

#: Text and image tokens `[B, L, D]`, `[B, T, D]`.
Tokens = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class CaptionBook:
    """Prompts as CLIP reads them: `pooled` `[N, 1 + C, P]`, each icon decorated, then by name on each colour.

    `states` `[M, L, D]` are T5's for some of them, whose content has no effect.
    """

    pooled: Tensor
    states: Tensor


def read_captions(text: TextModels, labels: Sequence[IconLabel], seed: int = 0, batch: int = 128) -> CaptionBook:
    """Every icon's captions."""
    rng, names = Random(seed), list(COLOURS)
    texts = [
        caption
        for label in labels
        for caption in (decorate(rng, label.name), label.name, *(on_background(rng, label.name, c) for c in names[1:]))
    ]
    prompts = [each for start in range(0, len(texts), batch) for each in text.encode(texts[start : start + batch])]
    pooled = torch.stack([each.pooled for each in prompts]).view(len(labels), 1 + len(names), -1)
    return CaptionBook(pooled, torch.stack([each.states for each in prompts[:: max(1, len(prompts) // 64)]]))


@torch.no_grad()
def measure_channels(vae: AutoencoderKL, latents: Tensor, amount: float = 0.2) -> Tensor:
    """How much a channel of the latents `[N, 16, h, w]` is seen: mean squared change of pixels, 1 on average `[16]`."""
    generator = torch.Generator(latents.device).manual_seed(0)
    seen, plain = [], decode_pixels(vae, latents)
    for channel in range(latents.shape[1]):
        changed = latents.clone()
        changed[:, channel] += amount * torch.randn(
            changed[:, channel].shape, generator=generator, device=latents.device
        )
        seen.append((decode_pixels(vae, changed) - plain).square().mean())
    found = torch.stack(seen)
    return found / found.mean()


class DrawingLearner(LearnerOfBlocks):
    """Trains the drawing blocks of a finished transformer; everything else is frozen."""

    name = "drawing"

    def __init__(
        self, transformer: FluxTransformer2DModel, book: CaptionBook, dataset: PictureDataset, seen: Tensor
    ) -> None:
        super().__init__(transformer, dataset, reopen_block, RATE, AVERAGED)
        self.book = book
        self.seen = seen.to(self.device).repeat_interleave(layout.TOKEN_CHANNELS // len(seen))

    def update(self, progress: float) -> Tensor:
        """One optimizer step; the weighed squared error of the clean latents."""
        [grid] = self.rng.choices([grid for grid, _ in GRIDS], [share for _, share in GRIDS])
        count = max(1, TOKENS_PER_BATCH[self.device.type] // (grid.tokens + self.book.states.shape[1]))
        batch = self.dataset.sample(self.rng, grid, count)
        drawn = self.draw(batch.noise, grid, self.choose_captions(batch.icons, batch.colours))
        loss = ((drawn - batch.clean).square() * self.seen).mean()
        optimizer_step(self.optimizer, loss, self.blocks, rate_factor(progress, self.done, 50, 0.2, 0.02))
        self.average.add(self.blocks)
        self.done += 1
        return loss.detach()

    def choose_captions(self, icons: Tensor, colours: Tensor) -> Tensor:
        """A caption for each picture: by name on its colour; on white sometimes a decorated one. Pooled `[B, P]`."""
        column = colours + 1
        decorated = torch.tensor([self.rng.random() < 0.3 for _ in range(len(icons))]) & (colours == 0)
        return self.book.pooled[icons, torch.where(decorated, 0, column)].float().to(self.device)

    def draw(self, noise: Tensor, grid: Grid, pooled: Tensor) -> Tensor:
        """The clean tokens `[B, T, 64]` that the network points to from pure noise `[B, T, 64]`, codes disturbed."""
        net, count = self.transformer, len(noise)
        chosen = torch.tensor([self.rng.randrange(len(self.book.states)) for _ in range(count)])
        with torch.no_grad():
            tokens = net.context_embedder(self.book.states[chosen].float().to(self.device)), net.x_embedder(noise)
            embedding = net.time_text_embed(torch.full((count,), 1000.0, device=self.device), pooled)
            rotation = net.pos_embed(position_ids(grid.size, tokens[0].shape[1]).to(self.device))
            tokens = self.run((*net.transformer_blocks, *self.computed_blocks()), tokens, embedding, rotation)
        spread = CODE_JITTER * layout.CODE_SPREAD * torch.rand(count, 1, device=self.device).square()
        embedding[:, : layout.ALL_CODES] += spread * torch.randn(count, layout.ALL_CODES, device=self.device)
        _, image = self.run(self.blocks, tokens, embedding, rotation)
        velocity: Tensor = net.proj_out(net.norm_out(image, embedding))
        return noise - velocity

    def run(self, blocks: Iterable[Any], tokens: Tokens, embedding: Tensor, rotation: Any) -> Tokens:
        """Text and image tokens after these blocks; between blocks they are float32."""
        text, image = tokens
        for block in blocks:
            with mixed_precision(self.device):
                text, image = block(
                    hidden_states=image, encoder_hidden_states=text, temb=embedding, image_rotary_emb=rotation
                )
            text, image = text.float(), image.float()
        return text, image

    def computed_blocks(self) -> list[Any]:
        """The single blocks before the drawing blocks."""
        singles = list(self.transformer.single_transformer_blocks)
        return singles[: singles.index(self.blocks[0])]
