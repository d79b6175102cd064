"""The captions that the text encoder learns from: sampled once, kept as token ids with what they mean."""

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

from schnell_mini.captions import COLOURS, IconLabel, KeywordOwners, decorate, half, on_background, write_caption
from schnell_mini.prompts import STYLES
from schnell_mini.tokens import build_tokenizer, token_ids

WHITE_SHARE = 0.45
SENTENCE_SHARE = 0.28
DICTIONARY_SHARE = 0.04
NAME_SHARE = 0.25
STYLED_SHARE = 0.4
HALF_SHARE = 0.55
CHUNKS = 16
#: Trigger words of LoRAs, and styles that people ask for: the icon that is meant is the same with and without.
STYLE_PHRASES = (
    *STYLES, "flat style", "flat icon", "line art", "line drawing", "black light", "blueprint", "pencil drawing",
)  # fmt: skip


@dataclass(frozen=True)
class CaptionSources:
    """What captions are made of: the icons' labels; words (`pairs`) and sentences with the icon each means."""

    labels: tuple[IconLabel, ...]
    pairs: tuple[tuple[str, int], ...]
    sentences: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Caption:
    """A text, the numbers of its icon and background; `unambiguous` unless other icons would fit it as well."""

    text: str
    icon: int
    colour: int
    unambiguous: bool


@dataclass(frozen=True)
class CaptionBatch:
    """Token ids `[B, L]`, numbers of icons and colours `[B]`, and whether each caption is unambiguous `[B]`."""

    ids: Tensor
    icons: Tensor
    colours: Tensor
    unambiguous: Tensor


@dataclass(frozen=True)
class CaptionDataset:
    """Many captions as tensors: token ids `[N, 32]`, numbers of icons and colours, `unambiguous` `[N]`."""

    ids: Tensor
    icons: Tensor
    colours: Tensor
    unambiguous: Tensor

    def __len__(self) -> int:
        return len(self.icons)

    def sample(self, rng: Random, count: int) -> CaptionBatch:
        """Random captions; on a CPU cut to the longest of them."""
        device = self.ids.device
        generator = torch.Generator(device).manual_seed(rng.getrandbits(40))
        rows = torch.randint(len(self), (count,), generator=generator, device=device)
        ids = self.ids[rows].long()
        if device.type == "cpu":
            ids = ids[:, : int((ids > 0).sum(1).max())]
        return CaptionBatch(ids, self.icons[rows].long(), self.colours[rows].long(), self.unambiguous[rows])

    def to(self, device: torch.device) -> "CaptionDataset":
        """The same on a device."""
        return CaptionDataset(*(part.to(device) for part in (self.ids, self.icons, self.colours, self.unambiguous)))


class CaptionSampler:
    """Writes random captions."""

    def __init__(self, sources: CaptionSources, rng: Random) -> None:
        self.sources, self.rng = sources, rng
        self.owners = KeywordOwners(sources.labels)

    def sample(self) -> Caption:
        """A sentence, a dictionary word, or an icon: by name (in some style), by half of its keywords, or described."""
        rng, chance = self.rng, self.rng.random()
        colour = 0 if rng.random() < WHITE_SHARE else rng.randrange(len(COLOURS))
        if chance < SENTENCE_SHARE and self.sources.sentences:
            return self.with_background(colour, *rng.choice(self.sources.sentences))
        if chance > 1 - DICTIONARY_SHARE and self.sources.pairs:
            word, icon = rng.choice(self.sources.pairs)
            return self.with_background(colour, decorate(rng, word), icon)
        icon, kind = rng.randrange(len(self.sources.labels)), rng.random()
        label = self.sources.labels[icon]
        if kind < NAME_SHARE or (kind < NAME_SHARE + HALF_SHARE and not label.keywords):
            style = f", {rng.choice(STYLE_PHRASES)}" if rng.random() < STYLED_SHARE else ""
            return self.with_background(colour, label.name + style, icon)
        if kind < NAME_SHARE + HALF_SHARE:
            words = rng.sample(label.keywords, half(label.keywords))
            return self.with_background(colour, ", ".join(words), self.owners.likeliest(words))
        return Caption(write_caption(rng, label, list(COLOURS)[colour]), icon, colour, unambiguous=False)

    def with_background(self, colour: int, text: str, icon: int) -> Caption:
        """A text whose icon is known, with a background named in it."""
        return Caption(on_background(self.rng, text, list(COLOURS)[colour]), icon, colour, unambiguous=True)


def sample_texts(sources: CaptionSources, count: int, seed: int = 0) -> list[str]:
    """The texts alone of `count` captions."""
    sampler = CaptionSampler(sources, Random(seed))
    return [sampler.sample().text for _ in range(count)]


def sample_chunk(sources: CaptionSources, vocabulary: str, seed: int, count: int) -> CaptionDataset:
    """The captions that one process samples; `vocabulary` as JSON."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer, sampler = build_tokenizer(Tokenizer.from_str(vocabulary)), CaptionSampler(sources, Random(seed))
    found = [sampler.sample() for _ in range(count)]
    return CaptionDataset(
        token_ids(tokenizer, [one.text for one in found]).short(),
        torch.tensor([one.icon for one in found], dtype=torch.short),
        torch.tensor([one.colour for one in found], dtype=torch.short),
        torch.tensor([one.unambiguous for one in found]),
    )


def build_dataset(sources: CaptionSources, vocabulary: Tokenizer, count: int) -> CaptionDataset:
    """`count` captions, rounded down to whole chunks, from as many processes as there are processors.

    Each chunk has its own seed, so the captions are the same however many processors there are.
    """
    if count < CHUNKS:
        return sample_chunk(sources, vocabulary.to_str(), 0, count)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        each = repeat(sources), repeat(vocabulary.to_str()), range(CHUNKS), repeat(count // CHUNKS)
        return join_datasets(list(pool.map(sample_chunk, *each)))


def join_datasets(parts: Sequence[CaptionDataset]) -> CaptionDataset:
    """Several datasets as one."""
    rows = zip(*((part.ids, part.icons, part.colours, part.unambiguous) for part in parts), strict=True)
    return CaptionDataset(*(torch.cat(row) for row in rows))


def save_dataset(dataset: CaptionDataset, path: Path) -> None:
    """Write the file beside `path` first, then rename it."""
    fresh = path.with_suffix(".part")
    torch.save((dataset.ids, dataset.icons, dataset.colours, dataset.unambiguous), fresh)
    fresh.replace(path)


def load_dataset(path: Path) -> CaptionDataset:
    """Read what `save_dataset` wrote."""
    return CaptionDataset(*torch.load(path, weights_only=True))
