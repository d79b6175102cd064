import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.web.dialects import openai


@pytest.mark.parametrize(
    ("steps", "count", "chosen"),
    [(4, 3, {1, 2, 3}), (4, 1, {2}), (4, 2, {1, 3}), (2, 1, {1}), (1, 3, set()), (4, 0, set())],
)
def test_partial_pictures_are_spread_over_the_steps(steps: int, count: int, chosen: set[int]) -> None:
    assert openai.choose_preview_steps(steps, count) == chosen


@given(st.integers(1, 4), st.integers(0, 3))
def test_the_last_step_is_never_a_partial_picture(steps: int, count: int) -> None:
    assert openai.choose_preview_steps(steps, count) <= set(range(1, steps))
