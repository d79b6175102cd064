import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from counts import repeats
from schnell.accounts import credits as books
from schnell.accounts.credits import PriceTable
from schnell.accounts.identity import Caller
from schnell.accounts.teams import add_member, change_team, create_team, find_member, find_team, list_members
from schnell.database.session import Database
from schnell.database.tables import ledger, members, metadata, new_id, teams
from schnell.errors import InsufficientCreditsError
from schnell.spec import ASPECT_RATIOS, GenerationSpec, LoraRef, resolve_size


def test_the_documented_prices() -> None:
    prices = PriceTable()
    assert prices.total(GenerationSpec("x")) == 1000
    assert prices.total(GenerationSpec("x", size=resolve_size(megapixels="0.25"))) == 400
    assert prices.total(GenerationSpec("x", steps=1)) == 400
    assert prices.total(GenerationSpec("x", num_outputs=4)) == 4000
    assert prices.total(GenerationSpec("x", loras=(LoraRef("a"), LoraRef("b")))) == 1400


@pytest.mark.parametrize("ratio", list(ASPECT_RATIOS))
@pytest.mark.parametrize(("megapixels", "price"), [("1", 1000), ("0.25", 400)])
def test_the_ratio_does_not_change_the_price(ratio: str, megapixels: str, price: int) -> None:
    assert PriceTable().total(GenerationSpec("x", size=resolve_size(ratio, megapixels))) == price


def test_custom_sizes_cost_by_the_quarter_megapixel() -> None:
    assert PriceTable().total(GenerationSpec("x", size=resolve_size("custom", width=1440, height=1440))) == 1800
    assert PriceTable().total(GenerationSpec("x", size=resolve_size("custom", width=256, height=256))) == 400


def test_an_operator_can_make_it_free() -> None:
    assert PriceTable(0, 0, 0).total(GenerationSpec("x", num_outputs=4)) == 0


sides = st.integers(8, 45).map(lambda count: 32 * count)
specs = st.builds(
    GenerationSpec,
    st.just("x"),
    size=st.builds(lambda width, height: resolve_size("custom", width=width, height=height), sides, sides),
    steps=st.integers(1, 3),
    num_outputs=st.integers(1, 4),
    loras=st.integers(0, 2).map(lambda count: (LoraRef("a"),) * count),
)


@given(st.builds(PriceTable, st.integers(0, 999), st.integers(0, 999), st.integers(0, 999)), specs)
def test_a_price_is_whole_adds_up_and_never_falls_with_more_work(prices: PriceTable, spec: GenerationSpec) -> None:
    price = prices.picture(spec)
    assert isinstance(price, int)
    assert price >= prices.per_picture + len(spec.loras) * prices.per_lora + prices.per_megapixel_step * spec.steps // 4
    assert prices.total(spec) == spec.num_outputs * price
    assert prices.picture(replace(spec, steps=spec.steps + 1)) >= price
    assert prices.picture(replace(spec, size=resolve_size("custom", width=1440, height=1440))) >= price


async def make_caller(database: Database, limit: int, member_limit: int | None = None) -> Caller:
    async with database.write() as connection:
        team = await create_team(connection, f"team {new_id()}", credit_limit=limit)
        member = await add_member(connection, team.id, "Ann", credit_limit=member_limit)
    return Caller(team.id, member.user_id, "Ann", new_id(), "MEMBER", ("generate",))


async def try_reserve(database: Database, caller: Caller, amount: int) -> books.Reservation | None:
    try:
        async with database.write() as connection:
            return await books.reserve(connection, caller, new_id(), amount)
    except InsufficientCreditsError:
        return None


async def used(database: Database, caller: Caller) -> tuple[int, int]:
    async with database.read() as connection:
        member = await find_member(connection, caller.team_id, caller.user_id)
        return member.used_credit, (await find_team(connection, caller.team_id)).used_credit


async def imbalances(database: Database) -> list[books.Imbalance]:
    async with database.read() as connection:
        return await books.audit(connection)


async def test_200_reservations_at_once_against_a_limit_for_100_grant_exactly_100(database: Database) -> None:
    caller = await make_caller(database, limit=500)
    granted = await asyncio.gather(*(try_reserve(database, caller, 5) for _ in range(200)))
    assert sum(each is not None for each in granted) == 100
    assert await used(database, caller) == (500, 500)
    assert await imbalances(database) == []
    async with database.read() as connection:
        assert (await connection.execute(select(func.sum(ledger.c.amount)))).scalar_one() == 500


async def test_a_members_own_limit_binds_before_the_teams(database: Database) -> None:
    caller = await make_caller(database, limit=1000, member_limit=100)
    assert await try_reserve(database, caller, 100)
    assert await try_reserve(database, caller, 1) is None
    assert await used(database, caller) == (100, 100)


async def test_a_teams_limit_leaves_the_members_counter_untouched(database: Database) -> None:
    caller = await make_caller(database, limit=100, member_limit=1000)
    assert await try_reserve(database, caller, 101) is None
    assert await used(database, caller) == (0, 0)


async def test_a_refusal_names_cost_and_rest(database: Database) -> None:
    caller = await make_caller(database, limit=139)
    with pytest.raises(InsufficientCreditsError, match=r"requires 1726 credits, but the .* only has 139 credits"):
        async with database.write() as connection:
            await books.reserve(connection, caller, new_id(), 1726)


async def test_settling_keeps_the_charge_and_releasing_gives_all_back(database: Database) -> None:
    caller = await make_caller(database, limit=100)
    first, second = await try_reserve(database, caller, 40), await try_reserve(database, caller, 40)
    assert first is not None
    assert second is not None
    async with database.write() as connection:
        await books.settle(connection, first, charged=10, pictures=1)
        await books.release(connection, second)
    assert await used(database, caller) == (10, 10)
    assert await imbalances(database) == []


async def test_a_reservation_is_found_again_by_its_record(database: Database) -> None:
    caller = await make_caller(database, limit=100)
    made = await try_reserve(database, caller, 40)
    assert made is not None
    async with database.read() as connection:
        assert await books.find_reservation(connection, made.record_id) == made
        assert await books.find_reservation(connection, new_id()) is None


async def test_a_new_budget_window_starts_from_zero_and_old_releases_do_not_count_in_it(database: Database) -> None:
    caller = await make_caller(database, limit=100, member_limit=1000)
    async with database.write() as connection:
        await change_team(connection, caller.team_id, budget_window="day")
    old = await try_reserve(database, caller, 100)
    assert old is not None
    assert old.team_window == books.window_label("day", datetime.now(UTC))
    async with database.write() as connection:  # as if that had been yesterday
        await connection.execute(update(teams).values(window_label="2020-01-01"))
        await connection.execute(update(ledger).values(team_window="2020-01-01"))
    yesterday = replace(old, team_window="2020-01-01")
    assert (await used(database, caller))[1] == 0
    assert await try_reserve(database, caller, 60)
    async with database.write() as connection:
        await books.release(connection, yesterday)
    assert (await used(database, caller))[1] == 60
    assert await imbalances(database) == []


async def test_the_audit_finds_a_counter_that_was_tampered_with(database: Database) -> None:
    caller = await make_caller(database, limit=100)
    async with database.write() as connection:
        await connection.execute(
            update(members).where(members.c.user_id == caller.user_id).values(used_credit=members.c.used_credit + 1)
        )
    assert await imbalances(database) == [books.Imbalance(caller.team_id, caller.user_id, 1, 0)]


operations = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.sampled_from(["settle", "release", "wait"])))


@settings(max_examples=repeats(300), deadline=None)
@given(operations)
def test_counters_always_equal_the_ledger(moves: list[tuple[int, int, str]]) -> None:
    with TemporaryDirectory() as folder:
        asyncio.run(_play(Path(folder), moves))


async def _play(folder: Path, moves: Sequence[tuple[int, int, str]]) -> None:
    database = Database(f"sqlite:{folder / 'ledger.db'}")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
    callers = [await make_caller(database, limit=150, member_limit=90) for _ in range(2)]
    async with database.write() as connection:
        second = await add_member(connection, callers[0].team_id, "Bob")
    callers.append(Caller(callers[0].team_id, second.user_id, "Bob", new_id(), "MEMBER", ("generate",)))
    expected = {caller.user_id: 0 for caller in callers}
    for who, amount, end in moves:
        caller = callers[who % len(callers)]
        reservation = await try_reserve(database, caller, amount)
        if reservation is None:
            continue
        expected[caller.user_id] += {"settle": amount // 2, "release": 0, "wait": amount}[end]
        if end == "wait":
            continue
        async with database.write() as connection:
            if end == "settle":
                await books.settle(connection, reservation, amount // 2, 1)
            else:
                await books.release(connection, reservation)
    assert await imbalances(database) == []
    async with database.read() as connection:
        found = await list_members(connection)
        assert all(0 <= each.used_credit <= each.credit_limit for each in found)
        counters = {each.user_id: each.used_credit for each in found}
        assert {user: counters[user] for user in expected} == expected
    await database.close()
