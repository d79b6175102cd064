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
from schnell.accounts.identity import Caller
from schnell.accounts.teams import add_member, change_team, create_team, find_member, find_team, list_members
from schnell.database.session import Database
from schnell.database.tables import ledger, members, metadata, new_id, teams
from schnell.errors import InsufficientCreditsError


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
    for who, amount, end in moves:
        reservation = await try_reserve(database, callers[who % len(callers)], amount)
        if reservation is None or end == "wait":
            continue
        async with database.write() as connection:
            if end == "settle":
                await books.settle(connection, reservation, amount // 2, 1)
            else:
                await books.release(connection, reservation)
    assert await imbalances(database) == []
    async with database.read() as connection:
        assert all(0 <= each.used_credit <= each.credit_limit for each in await list_members(connection))
    await database.close()
