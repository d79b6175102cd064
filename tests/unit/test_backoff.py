from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.clock import Backoff, retry


@given(st.floats(0.01, 10), st.floats(0.01, 100))
def test_waits_double_up_to_the_longest_with_jitter(first: float, longest: float) -> None:
    step = first
    for delay in islice(Backoff(first, longest).delays(), 20):
        assert step / 2 <= delay <= step
        step = min(2 * step, longest)


async def test_an_action_is_tried_until_it_succeeds() -> None:
    left = [ValueError("one"), KeyError("two")]
    seen: list[Exception] = []

    async def action() -> str:
        if left:
            raise left.pop(0)
        return "done"

    assert await retry(action, seen.append, Backoff(0, 0)) == "done"
    assert [type(each) for each in seen] == [ValueError, KeyError]


async def test_whoever_hears_of_a_failure_may_give_up() -> None:
    async def action() -> None:
        raise ValueError("no use")

    def give_up(error: Exception) -> None:
        raise error

    with pytest.raises(ValueError, match="no use"):
        await retry(action, give_up, Backoff(0, 0))
