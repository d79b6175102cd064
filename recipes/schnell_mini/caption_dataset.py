"""The captions that the text encoder learns from: sampled once, kept as token ids with what they mean."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from random import Random
from string import ascii_lowercase

import torch
from tokenizers import Tokenizer
from torch import Tensor

from schnell_mini.captions import COLOURS, IconLabel, KeywordOwners, decorate, describe, half, write_caption
from schnell_mini.learned.looks import LOOKS
from schnell_mini.prompts import STYLES
from schnell_mini.tokens import build_tokenizer, token_ids

WHITE_SHARE = 0.45
SENTENCE_SHARE = 0.28
DICTIONARY_SHARE = 0.04
NAME_SHARE = 0.25
STYLED_SHARE = 0.4
HALF_SHARE = 0.55
CHUNKS = 16
INVENTED_SHARE, HYPHENED_SHARE = 0.1, 0.15
#: Trigger words of LoRAs, and styles that people ask for: icon and background are the same with and without.
STYLE_PHRASES = (
    *STYLES, *(phrase for look in LOOKS for phrase in look.phrases), "flat icon", "line drawing", "pencil drawing",
    "ink drawing", "crayon drawing", "charcoal", "pastel colors", "acrylic painting", "paper cut", "vector art",
    "clip art", "sticker", "comic style", "anime style", "cartoon style", "toy style", "concept art", "pop art",
    "art nouveau", "impressionism", "surreal", "abstract", "gothic", "steampunk", "retro", "vintage", "noir",
    "photorealistic", "hyperrealistic", "realistic photo", "product photo", "macro shot", "wide angle", "cinematic",
    "black and white", "monochrome", "vibrant colors", "high contrast", "golden hour", "soft light",
    "volumetric light", "depth of field", "octane render", "unreal engine", "ray tracing", "neon", "neon sign",
    "minimalist", "intricate", "masterpiece", "best quality", "high quality", "sharp focus", "8k", "award winning",
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
        """A subject on a background, with or without words of style."""
        colour = 0 if self.rng.random() < WHITE_SHARE else self.rng.randrange(len(COLOURS))
        subject = self.subject()
        styles = pick_styles(self.rng) if self.rng.random() < STYLED_SHARE else []
        text = write_caption(self.rng, subject.text, list(COLOURS)[colour], styles)
        return replace(subject, text=text, colour=colour)

    def subject(self) -> Caption:
        """A sentence, a dictionary word, or an icon: by name, by half of its keywords, or described."""
        chance = self.rng.random()
        if chance < SENTENCE_SHARE and self.sources.sentences:
            return Caption(*self.rng.choice(self.sources.sentences), colour=0, unambiguous=True)
        if chance > 1 - DICTIONARY_SHARE and self.sources.pairs:
            word, icon = self.rng.choice(self.sources.pairs)
            return Caption(decorate(self.rng, word), icon, colour=0, unambiguous=True)
        icon, kind = self.rng.randrange(len(self.sources.labels)), self.rng.random()
        label = self.sources.labels[icon]
        if kind < NAME_SHARE or (kind < NAME_SHARE + HALF_SHARE and not label.keywords):
            return Caption(label.name, icon, colour=0, unambiguous=True)
        if kind < NAME_SHARE + HALF_SHARE:
            words = self.rng.sample(label.keywords, half(label.keywords))
            return Caption(", ".join(words), self.owners.likeliest(words), colour=0, unambiguous=True)
        return Caption(decorate(self.rng, describe(self.rng, label)), icon, colour=0, unambiguous=False)


def pick_styles(rng: Random) -> list[str]:
    """One to three phrases of style; some are invented, as users invent trigger words for their LoRAs."""
    return [pick_style(rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]


def pick_style(rng: Random) -> str:
    """A phrase of style, sometimes with hyphens, or random letters."""
    if rng.random() < INVENTED_SHARE:
        return "".join(rng.choices(ascii_lowercase, k=rng.randint(3, 8))) + rng.choice(("", "", " style"))
    phrase = rng.choice(STYLE_PHRASES)
    return phrase.replace(" ", "-") if rng.random() < HYPHENED_SHARE else phrase


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
