"""Budgets whose windows and limits change while credits move: the counters are always what the ledger says."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update

from counts import repeats
from schnell.accounts import credits as books
from schnell.accounts.identity import BudgetWindow, Caller
from schnell.accounts.keys import create_key
from schnell.accounts.teams import add_member, change_member, change_team, create_team, find_member, find_team
from schnell.database.session import Database
from schnell.database.tables import members, metadata, new_id, teams
from schnell.errors import InsufficientCreditsError, UnauthorizedError

START = datetime(2026, 1, 30, 22, tzinfo=UTC)


@dataclass
class Clock:
    moment: datetime = START

    def __call__(self) -> datetime:
        return self.moment


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(books, "now", clock)
    return clock


async def make_caller(database: Database, limit: int = 1000, member_limit: int = 10**6) -> Caller:
    async with database.write() as connection:
        team = await create_team(connection, f"team {new_id()}", credit_limit=limit)
        member = await add_member(connection, team.id, "Ann", credit_limit=member_limit)
    return Caller(team.id, member.user_id, "Ann", new_id(), "MEMBER", ("generate",))


async def take(database: Database, caller: Caller, amount: int) -> books.Reservation | None:
    try:
        async with database.write() as connection:
            return await books.reserve(connection, caller, new_id(), amount)
    except InsufficientCreditsError:
        return None


async def give_back(database: Database, reservation: books.Reservation) -> None:
    async with database.write() as connection:
        await books.release(connection, reservation)


async def set_window(database: Database, caller: Caller, window: BudgetWindow) -> None:
    async with database.write() as connection:
        await change_team(connection, caller.team_id, budget_window=window)
    # a transaction of its own: movements lock the member before the team
    async with database.write() as connection:
        await change_member(connection, caller.team_id, caller.user_id, budget_window=window)


async def used(database: Database, caller: Caller) -> tuple[int, int]:
    async with database.read() as connection:
        assert await books.audit(connection) == []
        member = await find_member(connection, caller.team_id, caller.user_id)
        return member.used_credit, (await find_team(connection, caller.team_id)).used_credit


async def test_a_window_there_and_back_spends_no_credit_twice(database: Database, clock: Clock) -> None:
    caller = await make_caller(database)
    for _ in range(3):
        assert await take(database, caller, 250)
    await set_window(database, caller, "day")
    assert await used(database, caller) == (750, 750)
    clock.moment += timedelta(days=1)
    assert await used(database, caller) == (0, 0)
    assert await take(database, caller, 250)
    await set_window(database, caller, "none")
    assert await used(database, caller) == (1000, 1000)
    assert await take(database, caller, 1) is None
    await set_window(database, caller, "month")
    assert await used(database, caller) == (1000, 1000)
    clock.moment = datetime(2026, 2, 1, tzinfo=UTC)
    assert await used(database, caller) == (0, 0)


async def test_what_comes_back_counts_in_the_window_that_its_reservation_lies_in(
    database: Database, clock: Clock
) -> None:
    caller = await make_caller(database)
    await set_window(database, caller, "day")
    yesterday = await take(database, caller, 100)
    clock.moment += timedelta(days=1)
    today = await take(database, caller, 50)
    assert yesterday is not None
    assert today is not None
    await give_back(database, yesterday)
    assert await used(database, caller) == (50, 50)
    await set_window(database, caller, "month")
    assert await used(database, caller) == (50, 50)
    await give_back(database, today)
    assert await used(database, caller) == (0, 0)


async def test_two_servers_clocks_that_pass_midnight_one_after_the_other_share_the_new_window(
    database: Database, clock: Clock
) -> None:
    caller = await make_caller(database, limit=100)
    await set_window(database, caller, "day")
    late, early = START.replace(hour=23, minute=59), START.replace(hour=0) + timedelta(days=1)
    clock.moment = late
    assert await take(database, caller, 90)
    clock.moment = early
    assert await take(database, caller, 60)
    clock.moment = late
    assert await take(database, caller, 60) is None
    kept = await take(database, caller, 40)
    assert kept is not None
    clock.moment = early
    assert await used(database, caller) == (100, 100)
    await give_back(database, kept)
    assert await used(database, caller) == (60, 60)


async def test_a_change_of_the_window_waits_for_movements_under_way(database: Database) -> None:
    caller = await make_caller(database, limit=10**6)

    async def move(amount: int) -> None:
        reservation = await take(database, caller, amount)
        assert reservation is not None
        async with database.write() as connection:
            await books.settle(connection, reservation, amount // 2, 1)

    async def change() -> None:
        for window in ("day", "none", "month", "none"):
            await set_window(database, caller, window)

    await asyncio.gather(*(move(2 * amount) for amount in range(1, 31)), change())
    assert await used(database, caller) == (465, 465)


async def test_a_limit_below_what_is_used_refuses_with_nothing_left_until_it_is_raised(database: Database) -> None:
    caller = await make_caller(database)
    under_way = await take(database, caller, 600)
    assert under_way is not None
    async with database.write() as connection:
        await change_team(connection, caller.team_id, credit_limit=500)
    with pytest.raises(InsufficientCreditsError, match="requires 1 credits, but the Team only has 0 credits"):
        async with database.write() as connection:
            await books.reserve(connection, caller, new_id(), 1)
    async with database.write() as connection:
        await books.settle(connection, under_way, 600, 1)
    assert await used(database, caller) == (600, 600)
    async with database.write() as connection:
        await change_team(connection, caller.team_id, credit_limit=601)
    assert await take(database, caller, 1)


async def test_a_member_who_is_gone_is_refused_and_what_they_had_under_way_still_counts_for_the_team(
    database: Database,
) -> None:
    caller = await make_caller(database)
    under_way = await take(database, caller, 100)
    assert under_way is not None
    async with database.write() as connection:
        await create_key(connection, caller.team_id, caller.user_id)
        await connection.execute(delete(members).where(members.c.user_id == caller.user_id))
    with pytest.raises(UnauthorizedError):
        await take(database, caller, 1)
    async with database.write() as connection:
        await books.settle(connection, under_way, 70, 1)
    async with database.read() as connection:
        assert await books.audit(connection) == []
        assert (await find_team(connection, caller.team_id)).used_credit == 70


async def test_setting_the_window_again_counts_a_broken_counter_again(database: Database) -> None:
    caller = await make_caller(database)
    assert await take(database, caller, 100)
    async with database.write() as connection:
        await connection.execute(update(teams).values(used_credit=7))
    async with database.read() as connection:
        assert await books.audit(connection) == [books.Imbalance(caller.team_id, None, 7, 100)]
    await set_window(database, caller, "none")
    assert await used(database, caller) == (100, 100)


WINDOWS: tuple[BudgetWindow, ...] = ("none", "day", "month")
moves = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 1), st.integers(0, 60)),
        st.tuples(st.sampled_from(["settle", "release"]), st.integers(0, 9), st.integers(0, 100)),
        st.tuples(st.just("window"), st.integers(0, 2), st.sampled_from(WINDOWS)),
        st.tuples(st.just("limit"), st.integers(0, 2), st.integers(0, 200)),
        st.tuples(st.just("hours"), st.integers(1, 30), st.none()),
    ),
    max_size=30,
)


@dataclass
class Model:
    """A team of two, as plain sums. Budget 0 and 1 are the members', 2 is the team's."""

    limits: list[int] = field(default_factory=lambda: [120, 120, 150])
    windows: list[BudgetWindow] = field(default_factory=lambda: ["none", "none", "none"])
    charges: list[tuple[int, str, int]] = field(default_factory=list)
    open: list[tuple[int, books.Reservation]] = field(default_factory=list)

    def used(self, budget: int, moment: datetime) -> int:
        label = books.window_label(self.windows[budget], moment)
        whose = {0, 1} if budget == 2 else {budget}
        return sum(amount for who, day, amount in self.charges if who in whose and day.startswith(label))


@settings(max_examples=repeats(500), deadline=None)
@given(moves)
def test_whatever_changes_the_counters_are_the_ledger_and_no_window_is_overspent(moves: list[Any]) -> None:
    with TemporaryDirectory() as folder, ticking() as clock:
        asyncio.run(play(Path(folder), moves, clock))


@contextmanager
def ticking() -> Iterator[Clock]:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(books, "now", clock)
        yield clock


async def play(folder: Path, moves: list[Any], clock: Clock) -> None:
    database = Database(f"sqlite:{folder / 'ledger.db'}")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
        team = await create_team(connection, "team", credit_limit=150)
        people = [await add_member(connection, team.id, name, credit_limit=120) for name in ("Ann", "Bob")]
    callers = [Caller(team.id, each.user_id, each.user_name, new_id(), "MEMBER", ("generate",)) for each in people]
    model = Model()
    for move in moves:
        await make_move(database, callers, model, clock, move)
        async with database.read() as connection:
            assert await books.audit(connection) == []
            assert (await find_team(connection, team.id)).used_credit == model.used(2, clock.moment)
    await database.close()


async def make_move(
    database: Database, callers: list[Caller], model: Model, clock: Clock, move: tuple[str, int, Any]
) -> None:
    kind, which, value = move
    day = f"{clock.moment:%Y-%m-%d}"
    if kind == "reserve":
        fits = all(model.used(each, clock.moment) + value <= model.limits[each] for each in (which, 2))
        reservation = await take(database, callers[which], value)
        assert (reservation is not None) == fits
        if reservation is not None:
            model.charges.append((which, day, value))
            model.open.append((which, reservation))
    elif kind in {"settle", "release"} and model.open:
        who, reservation = model.open.pop(which % len(model.open))
        charged = 0 if kind == "release" else reservation.amount * value // 100
        async with database.write() as connection:
            if kind == "release":
                await books.release(connection, reservation)
            else:
                await books.settle(connection, reservation, charged, 1)
        model.charges.append((who, reservation.team_window, charged - reservation.amount))
    elif kind == "window":
        model.windows[which] = value
        await change(database, callers, which, budget_window=value)
    elif kind == "limit":
        model.limits[which] = value
        await change(database, callers, which, credit_limit=value)
    elif kind == "hours":
        clock.moment += timedelta(hours=which)


async def change(database: Database, callers: list[Caller], budget: int, **values: Any) -> None:
    async with database.write() as connection:
        if budget == 2:
            await change_team(connection, callers[0].team_id, **values)
        else:
            await change_member(connection, callers[budget].team_id, callers[budget].user_id, **values)
