import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.accounts.identity import Caller
from schnell.accounts.rates import RateLimits, check_rate_limit
from schnell.errors import DatabaseUnavailableError, InvalidFieldError, RateLimitedError, UnauthorizedError


def caller(key: str, rate: str | None = None) -> Caller:
    return Caller("team", "user", "Ann", key, "MEMBER", ("generate",), rate_limit=rate)


async def test_a_key_is_refused_after_its_rate_and_told_when_to_return() -> None:
    rates = RateLimits("2/minute")
    assert [(await rates.count(caller("a"))).remaining for _ in range(2)] == [1, 0]  # type: ignore[union-attr]
    with pytest.raises(RateLimitedError) as refused:
        await rates.count(caller("a"))
    assert 0 < refused.value.retry_after <= 60
    assert refused.value.limit == 2


async def test_keys_do_not_use_each_others_rate() -> None:
    rates = RateLimits("1/minute")
    await rates.count(caller("a"))
    await rates.count(caller("b"))


async def test_a_keys_own_rate_goes_before_the_servers() -> None:
    rates = RateLimits("1/minute")
    status = await rates.count(caller("a", "5/minute"))
    assert status is not None
    assert status.limit == 5


async def test_without_a_limit_nothing_is_counted() -> None:
    assert await RateLimits().count(caller("a")) is None


@pytest.mark.parametrize("text", ["60/minute", "1000/day", "5/2 seconds", "10 per hour"])
async def test_a_rate_limit_that_can_be_read_is_taken_as_it_stands(text: str) -> None:
    assert check_rate_limit(text) == text
    assert await RateLimits(text).count(caller("a")) is not None


@pytest.mark.parametrize("text", [None, ""])
def test_no_text_is_no_limit(text: str | None) -> None:
    assert check_rate_limit(text) is None


@given(st.text(max_size=20) | st.from_regex(r"[0-9]{0,3} ?(/|per) ?[0-9]{0,2} ?(second|minute|hour|day|week)?s?"))
async def test_what_is_accepted_can_be_counted_and_the_rest_is_refused_by_its_field(text: str) -> None:
    try:
        accepted = check_rate_limit(text)
    except InvalidFieldError as error:
        refused = error
    else:
        assert accepted == (text or None)
        with contextlib.suppress(RateLimitedError):  # 0/minute is a limit, too
            await RateLimits(accepted).count(caller("a"))
        return
    assert [problem.field for problem in refused.problems] == ["rateLimit"]


@pytest.mark.parametrize("limit", [1, 3, 10])
async def test_in_any_window_no_more_than_the_limit_is_granted(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 1_000_000.0
    monkeypatch.setattr("time.time", lambda: moment)
    rates, granted = RateLimits(f"{limit}/minute"), []
    for _ in range(400):
        moment += 1.5
        with contextlib.suppress(RateLimitedError):
            await rates.count(caller("a"))
            granted.append(moment)
    assert len(granted) > limit
    assert all(sum(start <= each < start + 60 for each in granted) <= limit for start in granted)


async def test_a_key_that_waits_as_long_as_it_is_told_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 1_000_000.3
    monkeypatch.setattr("time.time", lambda: moment)
    rates = RateLimits("2/minute")
    await rates.count(caller("a"))
    moment += 10.4
    await rates.count(caller("a"))
    with pytest.raises(RateLimitedError) as refused:
        await rates.count(caller("a"))
    assert refused.value.retry_after == 50
    moment += refused.value.retry_after
    assert await rates.count(caller("a")) is not None


async def test_tries_under_way_count_as_if_they_failed() -> None:
    rates = RateLimits()
    async with contextlib.AsyncExitStack() as under_way:
        for _ in range(3):
            await under_way.enter_async_context(rates.sign_in("1.2.3.4", "3/hour"))
        with pytest.raises(RateLimitedError) as refused:
            async with rates.sign_in("1.2.3.4", "3/hour"):
                pass
        assert refused.value.retry_after >= 1
        async with rates.sign_in("5.6.7.8", "3/hour"):
            pass
    # none of them failed
    async with rates.sign_in("1.2.3.4", "3/hour"):
        pass


@pytest.mark.parametrize(
    ("error", "counts"),
    [(UnauthorizedError("no"), True), (RateLimitedError("no", 1, 1), False), (DatabaseUnavailableError("no"), False)],
)
async def test_failures_to_sign_in_count_but_not_the_servers_own(error: Exception, counts: bool) -> None:
    rates = RateLimits()
    with pytest.raises(type(error)):
        async with rates.sign_in("1.2.3.4", "1/hour"):
            raise error
    with pytest.raises(RateLimitedError) if counts else contextlib.nullcontext():
        async with rates.sign_in("1.2.3.4", "1/hour"):
            pass
