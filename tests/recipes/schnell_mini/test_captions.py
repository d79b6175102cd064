from itertools import permutations
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from schnell_mini.captions import (
    COLOURS,
    SPELLINGS,
    IconLabel,
    KeywordOwners,
    describe,
    half_of_keywords,
    on_background,
    write_caption,
)

APPLE = IconLabel("red apple", ("apple", "fruit", "red apple"), ("snack",))


@given(st.integers(0, 10_000), st.sampled_from([c for c in COLOURS if c != "white"]))
def test_every_colour_but_white_is_named_in_the_caption(seed: int, colour: str) -> None:
    text = write_caption(Random(seed), "red apple", colour)
    assert any(word in text for word in SPELLINGS.get(colour, (colour,)))


@given(st.integers(0, 10_000))
def test_styles_stand_before_and_after_subject_and_background_and_none_is_lost(seed: int) -> None:
    text = write_caption(Random(seed), "house", "teal", ["line art", "8k"])
    assert all(words in text for words in ("house", "teal", "line art", "8k"))


def test_a_style_comes_in_every_order_with_subject_and_background() -> None:
    texts = [write_caption(Random(seed), "house", "teal", ["8k"]) for seed in range(400)]
    words = ("house", "teal", "8k")
    assert {tuple(sorted(words, key=text.index)) for text in texts} == set(permutations(words))


@given(st.integers(0, 10_000))
def test_white_is_named_or_left_out_but_never_another_colour(seed: int) -> None:
    text = on_background(Random(seed), "house", "white")
    assert text == "house" or "white" in text


@given(st.integers(0, 10_000))
def test_a_description_uses_only_the_icons_own_words(seed: int) -> None:
    words = set(describe(Random(seed), APPLE).replace(",", "").split())
    assert words
    assert words <= {"red", "apple", "fruit", "snack"}


@given(st.integers(0, 10_000), st.sampled_from(list(COLOURS)))
def test_the_same_chance_writes_the_same_caption(seed: int, colour: str) -> None:
    assert write_caption(Random(seed), "red apple", colour) == write_caption(Random(seed), "red apple", colour)


def test_an_icon_without_keywords_is_called_by_its_name() -> None:
    assert {describe(Random(seed), IconLabel("zzz")) for seed in range(50)} <= {"zzz", "zzz zzz"}


def test_keywords_leave_out_the_name() -> None:
    assert APPLE.keywords == ("apple", "fruit")


def test_a_list_of_keywords_means_the_icon_that_has_fewest_halves_with_them() -> None:
    labels = (
        IconLabel("beach", ("sand", "sea", "sun", "holiday", "water")),
        IconLabel("light", ("sea", "sun", "weather")),
        IconLabel("wave", ("sea", "sun", "water", "ocean")),
    )
    owners = KeywordOwners(labels)
    assert owners.likeliest(["sun", "sea"]) == 1
    assert owners.likeliest(["water", "sea"]) == 2
    assert owners.likeliest(["sea", "sun", "water"]) == 0


def test_a_word_that_is_a_name_means_that_icon_rather_than_half_of_another() -> None:
    labels = (IconLabel("spider", ("bug", "insect", "legs")), IconLabel("spider web", ("spider", "web")))
    owners = KeywordOwners(labels)
    assert owners.likeliest(["spider"]) == 0
    assert owners.likeliest(["web"]) == 1


@given(st.integers(0, 10_000))
def test_an_icons_own_keywords_mean_it(seed: int) -> None:
    other = IconLabel("house", ("home", "building"))
    words = half_of_keywords(Random(seed), APPLE).split(", ")
    assert KeywordOwners((other, APPLE)).likeliest(words) == 1
