"""More words for each icon: other keyword lists, and dictionary words that a sentence encoder places nearby."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from schnell.training.mini.captions import Entry

NEAR = 0.42
POS = {"1": 1, "2": 4, "3": 4, "4": 9, "5": 4}


def dictionary_words(wordnet: Path) -> list[str]:
    """Lemmas that WordNet's tagged texts contain: nouns seen once, verbs and adjectives seen four times."""
    seen: dict[str, None] = {}
    for line in (wordnet / "dict/index.sense").read_text().splitlines():
        key, _, _, count = line.split()
        lemma, rest = key.split("%")
        if int(count) >= POS[rest[0]] and lemma.replace("_", "").isalpha():
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


@torch.no_grad()
def embed(encoder: Path, texts: Sequence[str], batch: int = 64) -> Tensor:
    """Sentence vectors `[N, 384]` of unit length: the mean over tokens, as all-MiniLM-L6-v2 wants it."""
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModel.from_pretrained(encoder).eval()
    parts = []
    for start in range(0, len(texts), batch):
        tokens = tokenizer(list(texts[start : start + batch]), padding=True, return_tensors="pt")
        hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].float()
        parts.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(parts)


def icon_similarity(encoder: Path, entries: Sequence[Entry], words: Sequence[str]) -> Tensor:
    """`[words, icons]`: mean of the likeness to the name alone and to the name with its keywords."""
    names = embed(encoder, [e.label for e in entries])
    full = embed(encoder, [", ".join((e.label, *e.keywords)) for e in entries])
    vectors = embed(encoder, words)
    return (vectors @ names.T + vectors @ full.T) / 2


def nearby_words(similarity: Tensor, words: Sequence[str]) -> list[tuple[str, int]]:
    """Each word with the icon it is nearest to, where that is near enough."""
    best, index = similarity.max(1)
    pairs = zip(words, best.tolist(), index.tolist(), strict=True)
    return [(word, icon) for word, score, icon in pairs if score >= NEAR]
