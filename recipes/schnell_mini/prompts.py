"""Sentences as people type them: WordNet's example sentences, and made-up prompts with one or two things in them.

Which icon fits such a sentence best is decided by a pretrained sentence encoder (`words.nearest_icons`); CLIP learns
its decisions, a distillation as in Hinton et al. 2015 (arXiv:1503.02531).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from random import Random

from schnell_mini.captions import IconLabel

LONGEST = 70
PATTERNS = (
    "{a} and {b}", "{a} with {b}", "{a} in the {p}", "a {a} {v} in the {p}", "{q} {a}", "a {q} {a} in the {p}",
    "my {a} {v} a {b}", "a {a} {v} a {b}", "{a} {v} on the {p}", "{q} {a} {v} near the {p}", "{a} next to a {b}",
    "a {a} wearing a {b}", "{a} holding a {b}", "two {a} {v} together", "a {a} made of {n}", "{n} {a}",
    "{a}, {s}", "{q} {a}, {s}", "{a} in the {p}, {s}", "{s} of a {a}", "{s} of {a} and {b}", "{s} of a {q} {a}",
    "a {a} under the {q} {p}", "{a} over the {p} at {t}", "{q} {p} at {t} with {a}", "{a} {v} at {t}", "{a} at {t}",
    "i want a {q} {a}", "please draw my {a}", "a {b} and a {q} {a} in the {p}", "a day of {a} in the {p}",
    "{a} for my {b}", "a {a} full of {n}", "cup of {a}", "a bowl of {q} {a}", "{a} on a {b}", "the {a} of the {n}",
    "someone {v} with a {a}", "{v} the {a}", "{v} a {q} {a} at home", "how to {w} a {a}", "{w} and {a}", "{a} {n}",
    "a girl {v} with her {a}", "an old man {v} his {a}", "children {v} {a} in the {p}", "a photo of {q} {a} in {p}",
    "feeling {q} about my {a}", "time for {a}", "the best {a} in the {p}", "so {q} {a}", "{a}",
)  # fmt: skip
STYLES = (
    "digital art", "oil painting", "watercolor", "photo", "portrait", "close up", "cyberpunk style", "neon lights",
    "cinematic lighting", "highly detailed", "3d render", "cartoon", "sketch", "studio light", "minimal", "fantasy",
    "pixel art", "vintage poster", "bokeh", "soft colors", "dramatic sky", "isometric", "illustration", "4k",
)  # fmt: skip
PLACES = (
    "city", "forest", "park", "kitchen", "garden", "sky", "sea", "mountains", "street", "desert", "house", "snow",
    "field", "office", "school", "night", "beach", "river", "space", "village", "rain", "room", "market", "woods",
)  # fmt: skip
TIMES = ("night", "dawn", "noon", "sunset", "midnight", "christmas", "work", "home", "school", "the weekend")


def example_sentences(wordnet: Path) -> list[str]:
    """What WordNet gives as examples, and its short definitions."""
    found: dict[str, None] = {}
    for part in ("noun", "verb", "adj", "adv"):
        for line in (wordnet / f"dict/data.{part}").read_text("latin-1").splitlines():
            gloss = line.partition(" | ")[2]
            for text in (*re.findall(r'"([^"]+)"', gloss), re.sub(r'[;(]?\s*"[^"]*"', "", gloss)):
                plain = text.strip(" ;,.").lower()
                if 3 <= len(plain) <= LONGEST and plain.isascii():
                    found.setdefault(plain)
    return list(found)


def parts_of_speech(wordnet: Path) -> dict[str, list[str]]:
    """Common nouns, verbs and adjectives: single words by how often WordNet's texts use them."""
    kinds = {"1": "noun", "2": "verb", "3": "adjective", "5": "adjective"}
    counts: dict[str, dict[str, int]] = {kind: {} for kind in kinds.values()}
    for line in (wordnet / "dict/index.sense").read_text().splitlines():
        key, _, _, count = line.split()
        lemma, rest = key.split("%")
        if rest[0] in kinds and lemma.isalpha():
            table = counts[kinds[rest[0]]]
            table[lemma] = table.get(lemma, 0) + int(count)
    return {kind: [word for word, seen in table.items() if seen > 1] for kind, table in counts.items()}


def ing_form(verb: str) -> str:
    """A verb's form with -ing, right for most."""
    if verb.endswith("ee") or not verb.endswith("e"):
        return f"{verb}ing"
    return f"{verb[:-1]}ing"


def make_prompts(rng: Random, labels: Sequence[IconLabel], words: dict[str, list[str]], count: int) -> list[str]:
    """`count` prompts from patterns, about icons and other nouns."""

    def thing() -> str:
        chance, label = rng.random(), rng.choice(labels)
        if chance < 0.45:
            return label.name
        loose = (*label.keywords, *label.extra)
        return rng.choice(loose) if chance < 0.8 and loose else rng.choice(words["noun"])

    def make_prompt() -> str:
        verb = rng.choice(words["verb"])
        return rng.choice(PATTERNS).format(
            a=thing(), b=thing(), n=rng.choice(words["noun"]), q=rng.choice(words["adjective"]), v=ing_form(verb),
            w=verb, p=rng.choice(PLACES), s=rng.choice(STYLES), t=rng.choice(TIMES),
        )  # fmt: skip

    return [make_prompt() for _ in range(count)]
