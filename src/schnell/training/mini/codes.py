"""CLIP and the transformer's own text embedder learn together to turn a caption into codes of looks and background."""

from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from schnell.training.mini import layout
from schnell.training.mini.looks import Looks, Palette
from schnell.training.mini.loop import precision, rate, step
from schnell.training.mini.text import FULL_LENGTH_EVERY, Batch, ClipReader, Lessons, draw_batch
from schnell.training.mini.tokens import token_ids

READER_RATE = 7e-4
EMBEDDER_RATE = 1e-3
BATCH = 64
PLAIN = 16


@dataclass(frozen=True)
class Known:
    """The codes that captions stand for."""

    looks: Looks
    palette: Palette


def prepare_embedder(embedder: Any) -> None:
    """Start where the codes are all zero and the channels behind them are silent."""
    with torch.no_grad():
        embedder.linear_2.bias.zero_()
        embedder.linear_2.bias[: layout.TIME_CODE] = layout.LOOK_OFFSET
        embedder.linear_2.weight[layout.TIME_CODE :] *= 0.1


def code_errors(embedded: Tensor, batch: Batch, known: Known) -> tuple[Tensor, Tensor, Tensor]:
    """Errors of looks (by their strength), of the background, and of what should be silent."""
    read = (functional.silu(embedded[:, : layout.TIME_CODE]) - layout.LOOK_OFFSET) / layout.LOOK_SPREAD
    looks, colours = known.looks, known.palette.codes[batch.colours]
    wrong = (read[:, : layout.LOOKS] - looks.codes[batch.icons]).pow(2) * looks.weights
    return (
        wrong.sum(1).mean(),
        (read[:, layout.LOOKS :] - colours).pow(2).mean(),
        embedded[:, layout.TIME_CODE :].pow(2).mean(),
    )


class CodeLearner:
    """Trains CLIP through its reader and the text embedder; a quarter of the captions are plain names on white."""

    name = "codes"

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        reader: ClipReader,
        lessons: Lessons,
        known: Known,
        device: torch.device,
    ) -> None:
        self.reader, self.lessons, self.device, self.done = reader.to(device).train(), lessons, device, 0
        self.known = Known(
            Looks(known.looks.codes.to(device), known.looks.strengths.to(device)),
            Palette(known.palette.codes.to(device), known.palette.patterns),
        )
        self.embedder = transformer.time_text_embed.text_embedder.to(device)
        prepare_embedder(self.embedder)
        self.rng, self.both = Random(77), nn.ModuleList([self.reader, self.embedder])
        groups = [
            {"params": [value], "base": READER_RATE * reader.factor(key)} for key, value in reader.named_parameters()
        ]
        groups.append({"params": list(self.embedder.parameters()), "base": EMBEDDER_RATE})
        self.optimizer = torch.optim.AdamW(groups, lr=READER_RATE, betas=(0.9, 0.98), weight_decay=0.01)

    def update(self, progress: float) -> float:
        """One optimizer step; the loss."""
        batch = self.draw()
        ids = token_ids(self.lessons.tokenizer, batch.texts)
        if self.done % FULL_LENGTH_EVERY:
            ids = ids[:, : int((ids > 0).sum(1).max())]
        with precision(self.device):
            pooled = self.reader.encoder(input_ids=ids.to(self.device)).pooler_output
            icons, colours = self.reader.icon(pooled), self.reader.colour(pooled)
            embedded = self.embedder(pooled)
        looks, background, silent = code_errors(embedded.float(), batch, self.known)
        loss = functional.cross_entropy(icons.float(), batch.icons)
        loss = loss + 0.5 * functional.cross_entropy(colours.float(), batch.colours)
        loss = loss + 4 * looks + background + 0.1 * silent
        step(self.optimizer, loss, self.both, rate(progress, self.done, 100, 0.3, 0.02))
        self.done += 1
        return float(loss.detach())

    def draw(self) -> Batch:
        """Captions as people write them, a quarter of them plain names."""
        batch = draw_batch(self.rng, self.lessons.entries, self.lessons.pairs, BATCH)
        names = [self.lessons.entries[icon].label for icon in batch.icons[:PLAIN].tolist()]
        colours = torch.cat([torch.zeros(PLAIN, dtype=torch.long), batch.colours[PLAIN:]])
        return Batch(names + list(batch.texts[PLAIN:]), batch.icons.to(self.device), colours.to(self.device))

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and count of updates."""
        return {"both": self.both.state_dict(), "optimizer": self.optimizer.state_dict(), "done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        self.both.load_state_dict(state["both"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
        self.rng = Random(self.done)
