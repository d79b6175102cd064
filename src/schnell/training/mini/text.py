"""The text encoders learn, before any drawing, which icon a text means and what it looks like.

An encoder that starts from nothing inside a flow model sees each name too rarely. Here a caption is
answered at once: which of the icons (cross entropy), which background, and a small picture of it (its principal
components). CLIP is read where FLUX pools it; T5 at its registers, each of which holds one of 3 x 3 regions
(registers: Darcet et al. 2023, arXiv:2309.16588). T5 starts from CLIP's finished words and with a small rate: it does
not scale its attention, and with CLIP's rate its sums grow a hundredfold and nothing is learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

from schnell.training.mini.captions import COLOURS, Entry, caption, decorate, on_background
from schnell.training.mini.loop import precision, rate, step
from schnell.training.mini.pictures import resize
from schnell.training.mini.tokens import REGISTERS, SPECIAL, token_ids

THUMBNAIL = 24
GRID = 3
PARTS = 64
WHOLE = 192
CLIP_RATE = 1.5e-3
T5_RATE = 5e-4
PICTURE_WEIGHT = 3.0
WHITE = 0.45
DICTIONARY = 0.2
FULL_LENGTH_EVERY = 8


@dataclass(frozen=True)
class Looks:
    """What each icon looks like: scaled components of its 3 x 3 regions `[N, 9, 64]` and whole `[N, 192]`."""

    regions: Tensor
    whole: Tensor


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


def measure_looks(pictures: Tensor) -> Looks:
    """Components of 24 x 24 premultiplied RGBA thumbnails of uint8 icons `[N, 4, S, S]`."""
    small = torch.cat([resize(part.float() / 255, THUMBNAIL) for part in torch.split(pictures, 64)])
    cell = THUMBNAIL // GRID
    regions = [
        components(small[:, :, y * cell : (y + 1) * cell, x * cell : (x + 1) * cell].flatten(1), PARTS)
        for y in range(GRID)
        for x in range(GRID)
    ]
    return Looks(torch.stack(regions, 1), components(small.flatten(1), WHOLE))


class ClipReader(nn.Module):
    """CLIP with throw-away heads on its pooled output."""

    base_rate = CLIP_RATE

    def __init__(self, encoder: CLIPTextModel, width: int, icons: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.icon, self.colour = nn.Linear(width, icons), nn.Linear(width, len(COLOURS))
        self.whole = nn.Linear(width, WHOLE)

    def forward(self, ids: Tensor) -> Answer:
        """Read ids `[N, L]`."""
        pooled = self.encoder(input_ids=ids).pooler_output
        return Answer(self.icon(pooled), self.colour(pooled), self.whole(pooled))

    def target(self, looks: Looks) -> Tensor:
        """The small pictures this reader learns."""
        return looks.whole

    def factor(self, name: str) -> float:
        """How much faster than the rest a parameter learns: each word is seen rarely."""
        return 3.0 if "token_embedding" in name else 1.0


class T5Reader(nn.Module):
    """T5 with throw-away heads on its registers."""

    base_rate = T5_RATE

    def __init__(self, encoder: T5EncoderModel, width: int, icons: int) -> None:
        super().__init__()
        self.encoder = encoder
        count = len(REGISTERS)
        self.mixed, self.icon = nn.Linear(count * width, width), nn.Linear(width, icons)
        self.colour = nn.Linear(width, len(COLOURS))
        self.region = nn.Parameter(torch.randn(count, width, PARTS) * width**-0.5)

    def forward(self, ids: Tensor) -> Answer:
        """Read ids `[N, L]`."""
        hidden = self.encoder(input_ids=ids)[0][:, : len(REGISTERS)]
        regions = torch.einsum("nrd,rdk->nrk", hidden, self.region)
        return Answer(self.icon(self.mixed(hidden.flatten(1))), self.colour(hidden.mean(1)), regions)

    def target(self, looks: Looks) -> Tensor:
        """The small pictures this reader learns."""
        return looks.regions

    def factor(self, name: str) -> float:
        """T5 does not scale its queries, so they take the smallest steps."""
        if not name.startswith("encoder."):
            return 4.0
        parts = {".q.": 0.3, "relative_attention_bias": 3.0, "shared": 10.0}
        return next((factor for part, factor in parts.items() if part in name), 1.0)


def adopt_words(t5: T5EncoderModel, clip: CLIPTextModel) -> None:
    """Start T5's words from those CLIP has learned, at a small scale."""
    words = clip.get_input_embeddings().weight.detach()
    first = len(SPECIAL)
    with torch.no_grad():
        t5.shared.weight.mul_(0.5)
        t5.shared.weight[first:] = words[first:] * (0.1 / words.std())


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
    """What the encoders learn from: entries, dictionary words, looks, and the tokenizer of the encoder."""

    entries: Sequence[Entry]
    pairs: Sequence[tuple[str, int]]
    looks: Looks
    tokenizer: PreTrainedTokenizerFast


class TextLearner:
    """Trains one encoder through its reader."""

    def __init__(self, name: str, reader: ClipReader | T5Reader, lessons: Lessons, device: torch.device) -> None:
        self.name, self.reader, self.lessons, self.device = name, reader.to(device).train(), lessons, device
        self.rng, self.done, self.batch = Random(0), 0, 32
        self.pictures = reader.target(lessons.looks).to(device)
        groups = [
            {"params": [value], "base": reader.base_rate * reader.factor(key)}
            for key, value in reader.named_parameters()
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=reader.base_rate, betas=(0.9, 0.98), weight_decay=0.01)

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


@torch.no_grad()
def named_share(reader: ClipReader | T5Reader, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """How many of the texts (one an icon, in order) the reader takes for their icon."""
    device = next(reader.parameters()).device
    hits = 0
    for start in range(0, len(texts), 200):
        part = texts[start : start + 200]
        found = reader(token_ids(tokenizer, part).to(device)).icons.argmax(1).cpu()
        hits += int((found == torch.arange(start, start + len(part))).sum())
    return hits / max(1, len(texts))
