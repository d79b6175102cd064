import pytest

from schnell.accounts.identity import Caller
from schnell.accounts.rates import RateLimits
from schnell.errors import RateLimitedError


def caller(key: str, rate: str | None = None) -> Caller:
    return Caller("team", "user", "Ann", key, "MEMBER", ("generate",), rate_limit=rate)


def test_a_key_is_refused_after_its_rate_and_told_when_to_return() -> None:
    rates = RateLimits("2/minute")
    assert [rates.count(caller("a")).remaining for _ in range(2)] == [1, 0]  # type: ignore[union-attr]
    with pytest.raises(RateLimitedError) as refused:
        rates.count(caller("a"))
    assert 0 < refused.value.retry_after <= 60
    assert refused.value.limit == 2


def test_keys_do_not_use_each_others_rate() -> None:
    rates = RateLimits("1/minute")
    rates.count(caller("a"))
    rates.count(caller("b"))


def test_a_keys_own_rate_goes_before_the_servers() -> None:
    rates = RateLimits("1/minute")
    status = rates.count(caller("a", "5/minute"))
    assert status is not None
    assert status.limit == 5


def test_without_a_limit_nothing_is_counted() -> None:
    assert RateLimits().count(caller("a")) is None
