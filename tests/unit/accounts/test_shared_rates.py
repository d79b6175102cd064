"""Rates that servers count together in PostgreSQL, against what the words of a rate say."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import parse
from sqlalchemy import func, select

from databases import migrated_postgres, new_postgres_url
from schnell.accounts.identity import Caller
from schnell.accounts.rates import RateLimits
from schnell.accounts.shared_rates import SharedCounter
from schnell.database.session import Database
from schnell.database.tables import new_id, rate_counts
from schnell.errors import NotFoundError, RateLimitedError, UnauthorizedError

RATE = parse("5/minute")
PART = 1.0


class Clock:
    moment = 1_800_000_000.3

    def __call__(self) -> float:
        return self.moment


@pytest.fixture
async def shared() -> AsyncIterator[Database]:
    database = Database(new_postgres_url(migrated_postgres()))
    yield database
    await database.close()


def caller(key: str) -> Caller:
    return Caller("team", "user", "Ann", key, "MEMBER", ("generate",))


async def test_two_servers_together_grant_what_one_would(shared: Database) -> None:
    other = Database(str(shared._engine._engine.url.render_as_string(hide_password=False)))
    limits = [RateLimits("20/hour", SharedCounter(each)) for each in (shared, other)]
    asked = await asyncio.gather(*[limits[n % 2].count(caller("key")) for n in range(60)], return_exceptions=True)
    granted = [each for each in asked if not isinstance(each, BaseException)]
    refused = [each for each in asked if isinstance(each, RateLimitedError)]
    assert (len(granted), len(refused)) == (20, 40)
    assert {each.remaining for each in granted if each} == set(range(20))
    assert all(3500 < each.retry_after <= 3661 for each in refused)
    await other.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pauses=st.lists(st.floats(0.0, 70.0) | st.floats(0.0, 3.0), min_size=8, max_size=25))
async def test_no_period_has_more_hits_than_the_rate_and_waiting_as_told_is_enough(
    shared: Database, pauses: list[float]
) -> None:
    clock, who = Clock(), new_id()
    counter, granted = SharedCounter(shared, clock), list[float]()
    for pause in pauses:
        clock.moment += pause
        recent = [each for each in granted if each > clock.moment - 60]
        counted = await counter.hit(RATE, who)
        if counted.granted:
            granted.append(clock.moment)
            assert len(recent) < RATE.amount
            assert counted.remaining <= RATE.amount - len(recent) - 1
        else:
            # a hit counts for no longer than one part more than the period
            assert sum(each > clock.moment - 60 - PART for each in granted) >= RATE.amount
            assert 0 < counted.reset_after <= 60 + PART
            clock.moment += counted.reset_after
            assert (await counter.hit(RATE, who)).granted
            granted.append(clock.moment)


async def test_a_try_that_ends_well_is_taken_back_wherever_it_began(shared: Database) -> None:
    clock = Clock()
    limits = RateLimits(None, SharedCounter(shared, clock))
    async with limits.sign_in("1.2.3.4", "1/hour"):
        clock.moment += 700.0
        # under way, it counts as if it failed
        with pytest.raises(RateLimitedError):
            async with limits.sign_in("1.2.3.4", "1/hour"):
                pass
    with pytest.raises(UnauthorizedError):
        async with limits.sign_in("1.2.3.4", "1/hour"):
            raise UnauthorizedError("no")
    with pytest.raises(RateLimitedError):
        async with limits.sign_in("1.2.3.4", "1/hour"):
            raise NotFoundError("not reached")


async def test_a_clock_that_goes_back_grants_nothing_more(shared: Database) -> None:
    clock = Clock()
    counter = SharedCounter(shared, clock)
    assert [(await counter.hit(RATE, "key")).granted for _ in range(4)] == [True] * 4
    clock.moment -= 500.0
    assert [(await counter.hit(RATE, "key")).granted for _ in range(3)] == [True, False, False]


async def test_a_rate_of_nothing_grants_nothing(shared: Database) -> None:
    with pytest.raises(RateLimitedError):
        await RateLimits("0/minute", SharedCounter(shared)).count(caller("key"))


async def test_counts_that_matter_no_more_are_deleted_and_name_nobody(shared: Database) -> None:
    clock = Clock()
    counter = SharedCounter(shared, clock)
    await counter.hit(RATE, "address 192.0.2.1")
    clock.moment += 50.0
    await counter.hit(RATE, "name ann@example.org")
    clock.moment += 20.0
    await counter.forget_old()
    async with shared.read() as connection:
        [row] = list(await connection.execute(select(rate_counts)))
        assert (await connection.execute(select(func.count()).select_from(rate_counts))).scalar_one() == 1
    assert "ann" not in row.who
