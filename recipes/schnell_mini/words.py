"""More words for each icon: another keyword list, and texts whose nearest icon a sentence encoder finds."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from schnell_mini.captions import IconLabel

BATCH = 128
#: How often WordNet's texts must use a word of each part of speech (noun, verb, adjective, adverb, satellite).
MIN_USES = {"1": 1, "2": 4, "3": 4, "4": 9, "5": 4}


def dictionary_words(wordnet: Path) -> list[str]:
    """Lemmas that WordNet's tagged texts contain: nouns seen once, verbs and adjectives seen four times."""
    seen: dict[str, None] = {}
    for line in (wordnet / "dict/index.sense").read_text().splitlines():
        key, _, _, count = line.split()
        lemma, rest = key.split("%")
        if int(count) >= MIN_USES[rest[0]] and lemma.replace("_", "").isalpha():
            seen.setdefault(lemma.replace("_", " "))
    return list(seen)


def read_keywords(emojilib: Path) -> dict[str, tuple[str, ...]]:
    """emojilib's keywords by code points, in emojibase's spelling of them."""
    table: dict[str, list[str]] = json.loads((emojilib / "dist/emoji-en-US.json").read_text())
    return {
        "-".join(f"{ord(c):04x}" for c in emoji if c != "\ufe0f"): tuple(clean_keywords(words))
        for emoji, words in table.items()
    }


def clean_keywords(words: Sequence[str]) -> list[str]:
    """Plain lower-case words; smileys such as `:D` go."""
    plain = (word.replace("_", " ").lower() for word in words)
    return [word for word in plain if word.replace(" ", "").replace("-", "").isalnum()]


class SentenceEncoder:
    """all-MiniLM-L6-v2: texts to vectors of unit length, the mean over tokens."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors `[N, 384]`."""
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        hidden = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].float()
        return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def icon_vectors(encoder: SentenceEncoder, labels: Sequence[IconLabel]) -> Tensor:
    """`[icons, 384]`: the mean of each name alone, with its keywords, and with the looser words as well."""
    forms = [
        [", ".join((label.name, *more)) for more in ((), label.keywords, (*label.keywords, *label.extra))]
        for label in labels
    ]
    return torch.stack([encoder.embed(texts).mean(0) for texts in forms])


def nearest_icons(
    encoder: SentenceEncoder, icons: Tensor, texts: Sequence[str], near: float, report: Callable[[float], None]
) -> list[tuple[str, int]]:
    """Each text with the icon of highest cosine similarity, where that is at least `near`."""
    found: list[tuple[str, int]] = []
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), BATCH):
        part = ordered[start : start + BATCH]
        best, index = (encoder.embed(part) @ icons.T).max(1)
        rows = zip(part, best.tolist(), index.tolist(), strict=True)
        found += [(text, icon) for text, score, icon in rows if score >= near]
        report(min(1.0, (start + BATCH) / len(ordered)))
    return found
