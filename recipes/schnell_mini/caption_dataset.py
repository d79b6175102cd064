"""A bank of captions, read once: word pieces, the icon and the background that each means."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from schnell_mini.captions import COLOURS, Entry, KeywordOwners, caption, decorate, half, on_background
from schnell_mini.prompts import STYLES
from schnell_mini.tokens import token_ids, wrap

WHITE = 0.45
SENTENCES = 0.28
DICTIONARY = 0.04
PLAIN = 0.25
STYLED = 0.4
HALVES = 0.55
CHUNKS = 16
#: What LoRAs are woken by, and the styles that people ask for: neither changes what is drawn.
LOOKS = (
    *STYLES, "flat style", "flat icon", "line art", "line drawing", "black light", "blueprint", "pencil drawing",
)  # fmt: skip


@dataclass(frozen=True)
class Lore:
    """All that captions are made of: entries, dictionary words with the icon each means, and sentences likewise."""

    entries: tuple[Entry, ...]
    pairs: tuple[tuple[str, int], ...]
    sentences: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Caption:
    """A text, its icon and background; `sure` unless other icons would do as well."""

    text: str
    icon: int
    colour: int
    sure: bool


@dataclass(frozen=True)
class Batch:
    """Ids `[N, L]`, icons, colours and `sure` `[N]`."""

    ids: Tensor
    icons: Tensor
    colours: Tensor
    sure: Tensor


@dataclass(frozen=True)
class Bank:
    """Many captions as tensors on the device that learns from them."""

    ids: Tensor
    icons: Tensor
    colours: Tensor
    sure: Tensor

    def __len__(self) -> int:
        return len(self.icons)

    def draw(self, rng: Random, count: int) -> Batch:
        """Random captions; on a CPU without the padding that none of them needs."""
        device = self.ids.device
        generator = torch.Generator(device).manual_seed(rng.getrandbits(40))
        rows = torch.randint(len(self), (count,), generator=generator, device=device)
        ids = self.ids[rows].long()
        if device.type == "cpu":
            ids = ids[:, : int((ids > 0).sum(1).max())]
        return Batch(ids, self.icons[rows].long(), self.colours[rows].long(), self.sure[rows])

    def to(self, device: torch.device) -> "Bank":
        """The same on a device."""
        return Bank(*(part.to(device) for part in (self.ids, self.icons, self.colours, self.sure)))


class Author:
    """Writes captions."""

    def __init__(self, lore: Lore, rng: Random) -> None:
        self.lore, self.rng = lore, rng
        self.owners = KeywordOwners(lore.entries)

    def write(self) -> Caption:
        """A sentence, a dictionary word, or an icon: by name (in some style), by half of its keywords, or described."""
        rng, chance = self.rng, self.rng.random()
        colour = 0 if rng.random() < WHITE else rng.randrange(len(COLOURS))
        if chance < SENTENCES and self.lore.sentences:
            return self.on(colour, *rng.choice(self.lore.sentences))
        if chance > 1 - DICTIONARY and self.lore.pairs:
            word, icon = rng.choice(self.lore.pairs)
            return self.on(colour, decorate(rng, word), icon)
        icon, kind = rng.randrange(len(self.lore.entries)), rng.random()
        entry = self.lore.entries[icon]
        if kind < PLAIN or (kind < PLAIN + HALVES and not entry.keywords):
            style = f", {rng.choice(LOOKS)}" if rng.random() < STYLED else ""
            return self.on(colour, entry.label + style, icon)
        if kind < PLAIN + HALVES:
            words = rng.sample(entry.keywords, half(entry.keywords))
            return self.on(colour, ", ".join(words), self.owners.likeliest(words))
        return Caption(caption(rng, entry, list(COLOURS)[colour]), icon, colour, sure=False)

    def on(self, colour: int, text: str, icon: int) -> Caption:
        """A text whose icon is known, on a background."""
        return Caption(on_background(self.rng, text, list(COLOURS)[colour]), icon, colour, sure=True)


def make_texts(lore: Lore, count: int, seed: int = 0) -> list[str]:
    """Only the texts of many captions."""
    author = Author(lore, Random(seed))
    return [author.write().text for _ in range(count)]


def fill(lore: Lore, vocabulary: str, seed: int, count: int) -> Bank:
    """One process's captions."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer, author = wrap(Tokenizer.from_str(vocabulary)), Author(lore, Random(seed))
    found = [author.write() for _ in range(count)]
    return Bank(
        token_ids(tokenizer, [one.text for one in found]).short(),
        torch.tensor([one.icon for one in found], dtype=torch.short),
        torch.tensor([one.colour for one in found], dtype=torch.short),
        torch.tensor([one.sure for one in found]),
    )


def fill_bank(lore: Lore, vocabulary: Tokenizer, count: int) -> Bank:
    """Captions from all processors, the same however many these are."""
    if count < CHUNKS:
        return fill(lore, vocabulary.to_str(), 0, count)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        each = repeat(lore), repeat(vocabulary.to_str()), range(CHUNKS), repeat(count // CHUNKS)
        return join_banks(list(pool.map(fill, *each)))


def join_banks(parts: Sequence[Bank]) -> Bank:
    """One bank of several."""
    rows = zip(*((part.ids, part.icons, part.colours, part.sure) for part in parts), strict=True)
    return Bank(*(torch.cat(row) for row in rows))


def save_bank(bank: Bank, path: Path) -> None:
    """Write in one move."""
    fresh = path.with_suffix(".part")
    torch.save((bank.ids, bank.icons, bank.colours, bank.sure), fresh)
    fresh.replace(path)


def load_bank(path: Path) -> Bank:
    """Read what `save_bank` wrote."""
    return Bank(*torch.load(path, weights_only=True))
