import pytest
from tokenizers import Tokenizer

from schnell_mini.caption_dataset import CaptionSources, sample_texts
from schnell_mini.captions import IconLabel
from schnell_mini.tokens import ANCHORS, MAX_TOKENS, build_tokenizer, token_ids, train_vocabulary

LABELS = (
    IconLabel("red apple", ("fruit",)),
    IconLabel("house", ("home", "building")),
    IconLabel("rocket", ("space",)),
)


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    return train_vocabulary(sample_texts(CaptionSources(LABELS, (("villa", 1),), ()), 800), 200)


def test_anchors_stand_before_every_text(vocabulary: Tokenizer) -> None:
    ids = token_ids(build_tokenizer(vocabulary, ANCHORS), ["red apple", "house " * 60, ""])
    assert ids.shape == (3, MAX_TOKENS)
    assert ids[:, : len(ANCHORS)].tolist() == [list(range(3, 3 + len(ANCHORS)))] * 3


def test_a_long_text_still_ends_with_the_end_token(vocabulary: Tokenizer) -> None:
    ids = token_ids(build_tokenizer(vocabulary), ["red apple house " * 60])
    assert int(ids[0, -1]) == 1


def test_case_and_punctuation_do_not_matter(vocabulary: Tokenizer) -> None:
    plain, loud = token_ids(build_tokenizer(vocabulary), ["red apple", "Red, APPLE!"])
    assert plain.tolist() == loud.tolist()
