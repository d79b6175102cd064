import csv
import io
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from schnell.accounts.callers import authenticate
from schnell.accounts.credits import release, reserve, settle
from schnell.accounts.identity import Caller
from schnell.accounts.keys import create_key, list_keys
from schnell.accounts.teams import add_member, create_team, find_member
from schnell.accounts.usage import UsageRow, collect_usage, write_csv
from schnell.database.connection import Connection
from schnell.database.session import Database
from schnell.database.tables import api_keys, ledger, new_id, users

TODAY = "2026-05-02"
YESTERDAY = "2026-05-01"


async def make_caller(connection: Connection, team_id: str, user_id: str) -> Caller:
    made = await create_key(connection, team_id, user_id, secret=f"{new_id()[:7]}-key-of-a-member")
    return await authenticate(connection, made.secret)


async def draw(connection: Connection, caller: Caller, day: str, cost: int, charged: int | None) -> None:
    """One generation of a day: settled for `charged` credits, or failed (None)."""
    record_id = new_id()
    reservation = await reserve(connection, caller, record_id, cost)
    if charged is None:
        await release(connection, reservation)
    else:
        await settle(connection, reservation, charged, pictures=2)
    await connection.execute(update(ledger).where(ledger.c.record_id == record_id).values(day=day))


async def fill(connection: Connection) -> tuple[Caller, Caller, Caller]:
    """Two members of one team and one of another, with what they have drawn on two days."""
    acme = await create_team(connection, "acme", owner="Ann")
    zebra = await create_team(connection, "zebra", owner="Zoe")
    ann_id = (await find_member(connection, acme.id)).user_id
    bob_id = (await add_member(connection, acme.id, "Bob")).user_id
    zoe_id = (await find_member(connection, zebra.id)).user_id
    ann, bob = await make_caller(connection, acme.id, ann_id), await make_caller(connection, acme.id, bob_id)
    zoe = await make_caller(connection, zebra.id, zoe_id)
    await draw(connection, ann, TODAY, cost=100, charged=100)
    await draw(connection, ann, TODAY, cost=100, charged=50)
    await draw(connection, ann, TODAY, cost=100, charged=None)
    await draw(connection, ann, YESTERDAY, cost=100, charged=None)
    await draw(connection, bob, TODAY, cost=7, charged=7)
    await draw(connection, zoe, YESTERDAY, cost=9, charged=9)
    await reserve(connection, zoe, new_id(), 4)  # still running
    await connection.execute(update(ledger).where(ledger.c.amount == 4).values(day=YESTERDAY))
    return ann, bob, zoe


async def test_usage_is_summed_by_day_team_user_and_key_newest_day_first(database: Database) -> None:
    async with database.write() as connection:
        await fill(connection)
        found = await collect_usage(connection)
    assert [(row.day, row.team, row.user) for row in found] == [
        (TODAY, "acme", "Ann"),
        (TODAY, "acme", "Bob"),
        (YESTERDAY, "acme", "Ann"),
        (YESTERDAY, "zebra", "Zoe"),
    ]
    assert [(row.requests, row.failed, row.pictures, row.credits) for row in found] == [
        (3, 1, 4, 150),
        (1, 0, 2, 7),
        (1, 1, 0, 0),
        (2, 0, 2, 13),
    ]


async def test_each_key_of_a_user_has_a_row_of_its_own(database: Database) -> None:
    async with database.write() as connection:
        ann, _, _ = await fill(connection)
        second = await make_caller(connection, ann.team_id, ann.user_id)
        await draw(connection, second, TODAY, cost=3, charged=3)
        found = await collect_usage(connection, user_id=ann.user_id, since=date.fromisoformat(TODAY))
        keys = {key.id: key.prefix for key in await list_keys(connection, ann.team_id)}
    assert {row.key: row.credits for row in found} == {keys[str(ann.key_id)]: 150, keys[str(second.key_id)]: 3}


async def test_two_people_of_one_name_have_a_row_each(database: Database) -> None:
    async with database.write() as connection:
        _, bob, _ = await fill(connection)
        await connection.execute(update(users).values(name="Ann"))
        await connection.execute(update(api_keys).values(prefix="same"))
        found = await collect_usage(connection, team_id=bob.team_id, since=date.fromisoformat(TODAY))
    assert sorted(row.credits for row in found) == [7, 150]
    assert {row.user_id: row.credits for row in found}[bob.user_id] == 7


@pytest.mark.parametrize(
    ("since", "until", "days"),
    [
        (None, None, {TODAY, YESTERDAY}),
        (TODAY, None, {TODAY}),
        (None, YESTERDAY, {YESTERDAY}),
        (YESTERDAY, YESTERDAY, {YESTERDAY}),
        (YESTERDAY, TODAY, {TODAY, YESTERDAY}),
        (TODAY, YESTERDAY, set()),
    ],
)
async def test_both_days_of_a_span_are_included(
    database: Database, since: str | None, until: str | None, days: set[str]
) -> None:
    first, last = (date.fromisoformat(day) if day else None for day in (since, until))
    async with database.write() as connection:
        await fill(connection)
        assert {row.day for row in await collect_usage(connection, since=first, until=last)} == days


async def test_a_team_and_a_user_see_their_own_rows(database: Database) -> None:
    async with database.write() as connection:
        ann, bob, zoe = await fill(connection)
        of_team = await collect_usage(connection, team_id=ann.team_id)
        of_bob = await collect_usage(connection, team_id=ann.team_id, user_id=bob.user_id)
        assert {row.user for row in of_team} == {"Ann", "Bob"}
        assert [row.user for row in of_bob] == ["Bob"]
        assert await collect_usage(connection, team_id=zoe.team_id, user_id=bob.user_id) == []


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_a_name_does_not_become_a_formula(text: str) -> None:
    row = UsageRow(TODAY, text, text, "schnell_abc", 1, 0, 2, -40, "id")
    [header, shown] = csv.reader(io.StringIO(write_csv([row])))
    assert header == ["day", "team", "user", "key", "requests", "failed", "pictures", "credits", "user_id"]
    assert shown == [TODAY, f"'{text}", f"'{text}", "schnell_abc", "1", "0", "2", "-40", "id"]


@given(
    st.lists(
        st.builds(
            UsageRow,
            *[st.text(st.characters(exclude_characters="\0\r"))] * 4,
            *[st.integers(0, 10**9)] * 4,
            st.uuids().map(str),
        )
    )
)
def test_every_row_can_be_read_back(rows: list[UsageRow]) -> None:
    [_, *shown] = csv.reader(io.StringIO(write_csv(rows), newline=""))
    assert len(shown) == len(rows)
    for row, cells in zip(rows, shown, strict=True):
        texts = (row.day, row.team, row.user, row.key)
        assert [cell.removeprefix("'") for cell in cells[:4]] == [text.removeprefix("'") for text in texts]
        assert not any(cell.startswith(("=", "+", "-", "@", "\t")) for cell in cells[:4])
        assert [int(cell) for cell in cells[4:8]] == [row.requests, row.failed, row.pictures, row.credits]
        assert cells[8] == row.user_id
