"""CLIP learns, before any drawing, which icon a text means and what it looks like.

An encoder that starts from nothing inside a flow model sees each name too rarely. Here a caption is
answered at once: which of the icons (cross entropy), which background, and a small picture of it (its principal
components), all read where FLUX pools CLIP.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from schnell.training.mini.captions import COLOURS, Entry, caption, decorate, on_background
from schnell.training.mini.loop import precision, rate, step
from schnell.training.mini.pictures import resize
from schnell.training.mini.tokens import token_ids

THUMBNAIL = 24
WHOLE = 192
CLIP_RATE = 1.5e-3
PICTURE_WEIGHT = 3.0
WHITE = 0.45
DICTIONARY = 0.2
FULL_LENGTH_EVERY = 8


@dataclass(frozen=True)
class Batch:
    """Captions with the numbers of their icons and background colours."""

    texts: list[str]
    icons: Tensor
    colours: Tensor


@dataclass(frozen=True)
class Answer:
    """What a reader takes from a text: logits over icons and colours, and a small picture."""

    icons: Tensor
    colours: Tensor
    picture: Tensor


def components(values: Tensor, count: int) -> Tensor:
    """The first principal components `[N, count]`, scaled to a total variance of `count`."""
    centred = values - values.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    kept = min(count, len(s))
    scores = functional.pad(u[:, :kept] * s[:kept], (0, count - kept))
    return scores * (count / scores.pow(2).sum(1).mean().clamp_min(1e-8)).sqrt()


def measure_thumbnails(pictures: Tensor) -> Tensor:
    """Components `[N, 192]` of 24 x 24 premultiplied RGBA thumbnails of uint8 icons `[N, 4, S, S]`."""
    small = torch.cat([resize(part.float() / 255, THUMBNAIL) for part in torch.split(pictures, 64)])
    return components(small.flatten(1), WHOLE)


class ClipReader(nn.Module):
    """CLIP with throw-away heads on its pooled output."""

    def __init__(self, encoder: CLIPTextModel, width: int, icons: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.icon, self.colour = nn.Linear(width, icons), nn.Linear(width, len(COLOURS))
        self.whole = nn.Linear(width, WHOLE)

    def forward(self, ids: Tensor) -> Answer:
        """Read ids `[N, L]`."""
        pooled = self.encoder(input_ids=ids).pooler_output
        return Answer(self.icon(pooled), self.colour(pooled), self.whole(pooled))

    def factor(self, name: str) -> float:
        """How much faster than the rest a parameter learns: each word is seen rarely."""
        return 3.0 if "token_embedding" in name else 1.0


def draw_batch(rng: Random, entries: Sequence[Entry], pairs: Sequence[tuple[str, int]], size: int) -> Batch:
    """Captions of random icons; a fifth are dictionary words that mean the icon."""
    names = list(COLOURS)
    texts, icons, colours = [], [], []
    for _ in range(size):
        colour = 0 if rng.random() < WHITE else rng.randrange(len(names))
        if pairs and rng.random() < DICTIONARY:
            word, icon = rng.choice(pairs)
            text = on_background(rng, decorate(rng, word), names[colour])
        else:
            icon = rng.randrange(len(entries))
            text = caption(rng, entries[icon], names[colour])
        texts.append(text)
        icons.append(icon)
        colours.append(colour)
    return Batch(texts, torch.tensor(icons), torch.tensor(colours))


def text_loss(answer: Answer, batch: Batch, pictures: Tensor) -> Tensor:
    """Cross entropies of icon and colour plus the error of the small picture."""
    loss = functional.cross_entropy(answer.icons.float(), batch.icons)
    loss = loss + functional.cross_entropy(answer.colours.float(), batch.colours)
    return loss + PICTURE_WEIGHT * functional.mse_loss(answer.picture.float(), pictures)


@dataclass(frozen=True)
class Lessons:
    """What CLIP learns from: entries, dictionary words, thumbnails `[N, 192]`, and its tokenizer."""

    entries: Sequence[Entry]
    pairs: Sequence[tuple[str, int]]
    thumbnails: Tensor
    tokenizer: PreTrainedTokenizerFast


class TextLearner:
    """Trains CLIP through its reader."""

    name = "clip"

    def __init__(self, reader: ClipReader, lessons: Lessons, device: torch.device) -> None:
        self.reader, self.lessons, self.device = reader.to(device).train(), lessons, device
        self.rng, self.done, self.batch = Random(0), 0, 32
        self.pictures = lessons.thumbnails.to(device)
        groups = [
            {"params": [value], "base": CLIP_RATE * reader.factor(key)} for key, value in reader.named_parameters()
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=CLIP_RATE, betas=(0.9, 0.98), weight_decay=0.01)

    def update(self, progress: float) -> float:
        """One optimizer step; the loss."""
        batch = draw_batch(self.rng, self.lessons.entries, self.lessons.pairs, self.batch)
        ids = self.trim(token_ids(self.lessons.tokenizer, batch.texts)).to(self.device)
        batch = Batch(batch.texts, batch.icons.to(self.device), batch.colours.to(self.device))
        with precision(self.device):
            answer = self.reader(ids)
        loss = text_loss(answer, batch, self.pictures[batch.icons])
        step(self.optimizer, loss, self.reader, rate(progress, self.done))
        self.done += 1
        return float(loss.detach())

    def trim(self, ids: Tensor) -> Tensor:
        """Mostly without the padding that no caption of the batch needs; sometimes at full length."""
        if self.done % FULL_LENGTH_EVERY == 0:
            return ids
        return ids[:, : int((ids > 0).sum(1).max())]

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and count of updates."""
        return {"reader": self.reader.state_dict(), "optimizer": self.optimizer.state_dict(), "done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        self.reader.load_state_dict(state["reader"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
        self.rng = Random(self.done)
