from pathlib import Path
from random import Random

import pytest

from schnell_mini.captions import IconLabel
from schnell_mini.prompts import LONGEST, example_sentences, ing_form, make_prompts, parts_of_speech

NOUNS = """\
  1 a licence line
00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | what is seen; "it was full of Rackets"; "a team is a unit"
00001930 03 n 01 thing 0 001 ~ 00001930 n 0000 | {long}
"""
SENSES = """\
run%2:38:00:: 01926311 1 106
walk%2:38:00:: 01904930 1 1
house%1:06:00:: 03544360 1 50
house%1:14:00:: 08078020 2 1
old%3:00:00:: 01638438 1 20
new_york%1:15:00:: 09119277 1 40
"""


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    folder = tmp_path / "dict"
    folder.mkdir()
    (folder / "data.noun").write_text(NOUNS.format(long="x" * (LONGEST + 1)), "latin-1")
    for part in ("verb", "adj", "adv"):
        (folder / f"data.{part}").write_text("")
    (folder / "index.sense").write_text(SENSES)
    return tmp_path


def test_examples_and_short_definitions_are_sentences(wordnet: Path) -> None:
    assert example_sentences(wordnet) == ["it was full of rackets", "a team is a unit", "what is seen"]


def test_words_that_texts_use_are_known_by_their_part_of_speech(wordnet: Path) -> None:
    assert parts_of_speech(wordnet) == {"noun": ["house"], "verb": ["run"], "adjective": ["old"]}


def test_prompts_are_whole_and_the_same_each_time(wordnet: Path) -> None:
    labels, words = (IconLabel("red apple", ("fruit",)), IconLabel("rocket")), parts_of_speech(wordnet)
    first, second = (make_prompts(Random(3), labels, words, 200) for _ in range(2))
    assert first == second
    assert not any("{" in text for text in first)
    assert sum("red apple" in text or "rocket" in text for text in first) > 100


@pytest.mark.parametrize(("verb", "form"), [("walk", "walking"), ("make", "making"), ("see", "seeing")])
def test_verbs_get_their_ing_form(verb: str, form: str) -> None:
    assert ing_form(verb) == form
