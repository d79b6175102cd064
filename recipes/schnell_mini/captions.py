"""Captions as people may type them for an icon: its name or keywords, with styles, colours and small scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from random import Random

COLOURS: dict[str, tuple[float, float, float]] = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.03, 0.03, 0.03),
    "gray": (0.6, 0.6, 0.6),
    "red": (0.85, 0.15, 0.15),
    "orange": (1.0, 0.6, 0.2),
    "yellow": (1.0, 0.9, 0.4),
    "green": (0.3, 0.75, 0.35),
    "teal": (0.1, 0.55, 0.55),
    "blue": (0.25, 0.45, 0.9),
    "sky blue": (0.6, 0.85, 1.0),
    "purple": (0.55, 0.3, 0.8),
    "pink": (1.0, 0.7, 0.8),
    "brown": (0.5, 0.33, 0.2),
    "beige": (0.96, 0.9, 0.8),
}
SPELLINGS = {
    "gray": ("gray", "grey"),
    "black": ("black", "dark"),
    "sky blue": ("sky blue", "light blue"),
    "purple": ("purple", "violet"),
}
STARTS = (
    "a {}", "an {}", "the {}", "one {}", "my {}", "a photo of a {}", "a picture of a {}", "a 3d icon of {}",
    "an icon of {}", "a cute {}", "an illustration of a {}", "3d render of {}", "drawing of a {}", "big {}",
    "little {}", "{} emoji", "{} icon", "{}, 3d render", "{}, high quality", "{}, highly detailed", "{}, glossy",
    "{}, studio light", "{}, digital art", "beautiful {}", "a close up of {}", "{}, cartoon style", "{} please",
    "painting of {}", "draw a {}", "a portrait of {}", "{}, 4k", "{}, isometric", "{}, soft light", "{}, minimal",
)  # fmt: skip
BACKGROUNDS = (
    "{} on a {} background", "{} on a {} background", "{}, {} background", "{} with a {} background",
    "{} on {}", "{} against a {} background", "{}, on a plain {} background", "{}, {} backdrop", "{} over {}",
)  # fmt: skip
#: Backgrounds in front, which text encoders that were trained before these came in misread.
FRONT_BACKGROUNDS = ("on a {1} background, {0}", "{1} background, {0}")
#: Where words of style stand beside what they are said of.
STYLED = ("{}, {}", "{}, {}", "{} {}", "{} in {}", "{1}, {0}", "{1} of {0}", "{1} {0}")
SCENES = (
    "{a} at night", "{a} in the morning", "{a} by the sea", "{a} in the forest", "{a} in the city", "{a} in space",
    "{a} in winter", "{a}, neon lights", "{a} in the style of a toy", "{a}, cyberpunk style", "{a} in the rain",
    "a happy {a}", "a {a} made of plastic", "{a} under the sun", "{a} on the table", "{a} at home", "old {a}",
    "{a} in a garden", "fantasy {a}", "{a} for my birthday", "i want a {a}", "{a} near the river", "shiny {a}",
)  # fmt: skip
ADJECTIVES = ("red", "blue", "green", "small", "golden", "tiny", "old", "new", "modern", "colorful", "nice", "funny")


@dataclass(frozen=True)
class IconLabel:
    """An icon's name and keywords (`tags`); `extra` are looser words, used more rarely; `key` its code points."""

    name: str
    tags: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    key: str = ""

    @property
    def keywords(self) -> tuple[str, ...]:
        """The keywords other than the name."""
        return tuple(tag for tag in self.tags if tag != self.name)


def pick_words(rng: Random, words: Sequence[str], low: int, high: int) -> list[str]:
    """Between `low` and `high` of the words, in random order."""
    return rng.sample(list(words), min(len(words), rng.randint(low, high)))


def half_of_keywords(rng: Random, label: IconLabel) -> str:
    """A random half of an icon's keywords; its name when it has none."""
    keywords = list(label.keywords)
    return ", ".join(rng.sample(keywords, half(keywords))) or label.name


def half(keywords: Sequence[str]) -> int:
    """How many keywords a half is."""
    return (len(keywords) + 1) // 2


class KeywordOwners:
    """Which icons have which keywords, to tell whose half a list of keywords most likely is."""

    def __init__(self, labels: Sequence[IconLabel]) -> None:
        self._labels = labels
        self._named = {label.name: number for number, label in enumerate(labels)}
        self._owners: dict[str, set[int]] = {}
        for number, label in enumerate(labels):
            for word in label.keywords:
                self._owners.setdefault(word, set()).add(number)

    def likeliest(self, words: Sequence[str]) -> int:
        """The icon of whose keywords `words` is most likely a random half (Bayes' rule, icons equally likely).

        One word that is an icon's name means that icon: "spider" is not half of a spider web. Some icon must have all
        the words.
        """
        if len(words) == 1 and words[0] in self._named:
            return self._named[words[0]]
        owners = set.intersection(*(self._owners[word] for word in words))
        able = [number for number in sorted(owners) if half(self._labels[number].keywords) == len(words)]
        return min(able, key=lambda number: comb(len(self._labels[number].keywords), len(words)))


def describe(rng: Random, label: IconLabel) -> str:
    """The object alone: its name, some of its keywords, both, or a looser word."""
    tags, chance = label.keywords, rng.random()
    if label.extra and rng.random() < 0.1:
        return rng.choice(label.extra)
    if chance < 0.35 or not tags:
        return label.name
    if chance < 0.75:
        return rng.choice((", ", " ")).join(pick_words(rng, tags, 1, len(tags)))
    if chance < 0.9:
        return rng.choice((", ", " ")).join([label.name, *pick_words(rng, tags, 1, 3)])
    words = f"{label.name} {' '.join(tags)}".split()
    return " ".join(pick_words(rng, words, 2, 6))


def decorate(rng: Random, text: str) -> str:
    """The text with an article, a style, an adjective or a small scene around it; more often than not, as it is."""
    chance = rng.random()
    if chance < 0.55:
        return text
    if chance < 0.85:
        return rng.choice(STARTS).format(text)
    if chance < 0.92:
        return f"{rng.choice(ADJECTIVES)} {text}"
    return rng.choice(SCENES).format(a=text)


def on_background(rng: Random, text: str, colour: str, forms: Sequence[str] = BACKGROUNDS) -> str:
    """The text with its background named; white may stay unsaid."""
    if colour == "white" and rng.random() < 0.6:
        return text
    word = rng.choice(SPELLINGS.get(colour, (colour,)))
    return rng.choice(forms).format(text, word)


def in_styles(rng: Random, text: str, styles: Sequence[str]) -> str:
    """The text with words of style before or after it."""
    for style in styles:
        text = rng.choice(STYLED).format(text, style)
    return text


def write_caption(rng: Random, text: str, colour: str, styles: Sequence[str] = ()) -> str:
    """A whole prompt for a thing on a background of this colour; styles stand within or around both."""
    inner, forms = rng.randint(0, len(styles)), (*BACKGROUNDS, *FRONT_BACKGROUNDS)
    return in_styles(rng, on_background(rng, in_styles(rng, text, styles[:inner]), colour, forms), styles[inner:])
