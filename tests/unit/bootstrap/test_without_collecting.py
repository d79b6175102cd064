"""A start without garbage collections, and what is left of it afterwards."""

import gc
from collections.abc import Iterator

import pytest

from schnell.bootstrap import without_collecting


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Collections are on in each test; what it froze is thawed, so that the process of the tests can free it."""
    gc.enable()
    yield
    gc.enable()
    gc.unfreeze()


def is_looked_at(thing: object) -> bool:
    """Whether collections walk over an object: those that are frozen belong to no generation."""
    return any(each is thing for each in gc.get_objects())


def test_nothing_is_collected_within_and_what_was_made_is_passed_by_later() -> None:
    made_before: list[object] = [[]]
    with without_collecting():
        assert not gc.isenabled()
        made_within: list[object] = [[]]
    made_after: list[object] = [[]]
    assert gc.isenabled()
    assert [is_looked_at(each) for each in (made_before, made_within, made_after)] == [False, False, True]


def test_a_start_that_fails_freezes_nothing() -> None:
    made: list[object] = [[]]
    with pytest.raises(LookupError), without_collecting():
        raise LookupError
    assert gc.isenabled()
    assert is_looked_at(made)


def test_a_block_within_another_leaves_the_end_to_it() -> None:
    with without_collecting():
        with without_collecting():
            pass
        assert not gc.isenabled()
        assert gc.get_freeze_count() == 0
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
