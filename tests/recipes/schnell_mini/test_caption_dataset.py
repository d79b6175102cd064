from pathlib import Path
from random import Random

import pytest
import torch
from tokenizers import Tokenizer

from schnell_mini.caption_dataset import (
    CHUNKS,
    STYLE_PHRASES,
    CaptionSampler,
    CaptionSources,
    build_dataset,
    load_dataset,
    pick_styles,
    sample_chunk,
    sample_texts,
    save_dataset,
)
from schnell_mini.captions import COLOURS, IconLabel
from schnell_mini.tokens import MAX_TOKENS, train_vocabulary

LABELS = (
    IconLabel("red apple", ("fruit",)),
    IconLabel("house", ("home", "building")),
    IconLabel("rocket", ("space",)),
)
SOURCES = CaptionSources(LABELS, (("villa", 1),), (("a long way to the moon", 2),))


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    return train_vocabulary(sample_texts(SOURCES, 800), 200)


@pytest.mark.parametrize(("words", "icon"), [("villa", 1), ("a long way to the moon", 2)])
def test_words_and_sentences_mean_their_icon_unambiguously(words: str, icon: int) -> None:
    sampler = CaptionSampler(SOURCES, Random(1))
    captions = [one for one in (sampler.sample() for _ in range(600)) if words in one.text]
    assert captions
    assert {(one.icon, one.unambiguous) for one in captions} == {(icon, True)}


def test_a_name_in_a_style_is_still_that_icon() -> None:
    sampler = CaptionSampler(SOURCES, Random(3))
    styled = {f"red apple, {style}" for style in STYLE_PHRASES} | {f"{style} of red apple" for style in STYLE_PHRASES}
    captions = [one for one in (sampler.sample() for _ in range(3000)) if one.unambiguous and one.text in styled]
    assert captions
    assert {(one.icon, one.colour) for one in captions} == {(0, 0)}


def test_styles_are_those_that_people_ask_for_and_some_that_nobody_knows() -> None:
    styles = [style for seed in range(200) for style in pick_styles(Random(seed))]
    hyphened = {phrase.replace(" ", "-") for phrase in STYLE_PHRASES if " " in phrase}
    invented = [style for style in styles if style not in {*STYLE_PHRASES, *hyphened}]
    assert 0 < len(invented) < len(styles) / 4
    assert 0 < sum(style in hyphened for style in styles) < len(styles) / 4


def test_only_descriptions_are_ambiguous() -> None:
    sampler = CaptionSampler(SOURCES, Random(2))
    ambiguous = [one.text for one in (sampler.sample() for _ in range(400)) if not one.unambiguous]
    assert ambiguous
    assert not any("villa" in text or "moon" in text for text in ambiguous)


def test_a_dataset_holds_what_every_process_sampled(vocabulary: Tokenizer) -> None:
    dataset = build_dataset(SOURCES, vocabulary, 2 * CHUNKS)
    assert dataset.ids.shape == (2 * CHUNKS, MAX_TOKENS)
    assert torch.equal(dataset.ids[-2:], sample_chunk(SOURCES, vocabulary.to_str(), CHUNKS - 1, 2).ids)


def test_a_batch_has_no_padding_that_none_of_its_captions_needs(vocabulary: Tokenizer) -> None:
    batch = build_dataset(SOURCES, vocabulary, CHUNKS - 1).sample(Random(0), 8)
    assert batch.ids.shape[0] == 8
    assert batch.ids.shape[1] < MAX_TOKENS
    assert int((batch.ids[:, -1] > 0).sum()) > 0
    assert int(batch.colours.max()) < len(COLOURS)


def test_a_saved_dataset_is_read_back(tmp_path: Path, vocabulary: Tokenizer) -> None:
    dataset, path = build_dataset(SOURCES, vocabulary, 5), tmp_path / "captions.pt"
    save_dataset(dataset, path)
    again = load_dataset(path)
    assert torch.equal(again.ids, dataset.ids)
    assert torch.equal(again.unambiguous, dataset.unambiguous)
