from pathlib import Path
from random import Random

import pytest
import torch
from tokenizers import Tokenizer

from schnell_mini.caption_dataset import CHUNKS, LOOKS, Author, Lore, fill, fill_bank, load_bank, make_texts, save_bank
from schnell_mini.captions import COLOURS, Entry
from schnell_mini.tokens import LENGTH, train_vocabulary

ENTRIES = (Entry("red apple", ("fruit",)), Entry("house", ("home", "building")), Entry("rocket", ("space",)))
LORE = Lore(ENTRIES, (("villa", 1),), (("a long way to the moon", 2),))


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    return train_vocabulary(make_texts(LORE, 800), 200)


@pytest.mark.parametrize(("words", "icon"), [("villa", 1), ("a long way to the moon", 2)])
def test_words_and_sentences_stand_for_their_icon_for_sure(words: str, icon: int) -> None:
    author = Author(LORE, Random(1))
    captions = [one for one in (author.write() for _ in range(600)) if words in one.text]
    assert captions
    assert {(one.icon, one.sure) for one in captions} == {(icon, True)}


def test_a_name_in_a_style_is_still_that_icon() -> None:
    author = Author(LORE, Random(3))
    styled = tuple(f"red apple, {style}" for style in LOOKS)
    captions = [one for one in (author.write() for _ in range(600)) if one.sure and one.text.startswith(styled)]
    assert captions
    assert {one.icon for one in captions} == {0}


def test_only_descriptions_are_unsure() -> None:
    author = Author(LORE, Random(2))
    unsure = [one.text for one in (author.write() for _ in range(400)) if not one.sure]
    assert unsure
    assert not any("villa" in text or "moon" in text for text in unsure)


def test_a_bank_holds_what_every_process_wrote(vocabulary: Tokenizer) -> None:
    bank = fill_bank(LORE, vocabulary, 2 * CHUNKS)
    assert bank.ids.shape == (2 * CHUNKS, LENGTH)
    assert torch.equal(bank.ids[-2:], fill(LORE, vocabulary.to_str(), CHUNKS - 1, 2).ids)


def test_a_batch_has_no_padding_that_none_of_its_captions_needs(vocabulary: Tokenizer) -> None:
    batch = fill_bank(LORE, vocabulary, CHUNKS - 1).draw(Random(0), 8)
    assert batch.ids.shape[0] == 8
    assert batch.ids.shape[1] < LENGTH
    assert int((batch.ids[:, -1] > 0).sum()) > 0
    assert int(batch.colours.max()) < len(COLOURS)


def test_a_saved_bank_is_read_back(tmp_path: Path, vocabulary: Tokenizer) -> None:
    bank, path = fill_bank(LORE, vocabulary, 5), tmp_path / "captions.pt"
    save_bank(bank, path)
    again = load_bank(path)
    assert torch.equal(again.ids, bank.ids)
    assert torch.equal(again.sure, bank.sure)
