from datetime import timedelta

import pytest

from schnell.accounts.administration import (
    add_member,
    change_key,
    change_member,
    change_team,
    create_key,
    create_team,
)
from schnell.accounts.audit import SERVER, Actor, list_entries, record
from schnell.accounts.identity import Team
from schnell.accounts.teams import find_team, list_members
from schnell.clock import now
from schnell.database.session import Database
from schnell.errors import ConflictError

ANN = Actor("Ann", "session", "ann")


async def fill(database: Database) -> tuple[Team, Team]:
    async with database.write() as connection:
        teams = [await create_team(connection, ANN, name, credit_limit=10) for name in ("acme", "globex")]
        await change_team(connection, SERVER, teams[0].id, credit_limit=20, budget_window="day")
        member = await add_member(connection, ANN, teams[1].id, "Bob")
        await change_member(connection, ANN, teams[1].id, member.user_id, role="ADMIN")
    return teams[0], teams[1]


async def test_a_change_says_who_and_what_was_before_and_after(database: Database) -> None:
    acme, globex = await fill(database)
    async with database.read() as connection:
        found = await list_entries(connection)
    assert [(each.actor, each.action, each.target, each.team_id) for each in found] == [
        ("Ann", "member.changed", "Bob", globex.id),
        ("Ann", "member.added", "Bob", globex.id),
        ("SYSTEM", "team.changed", "acme", acme.id),
        ("Ann", "team.made", "globex", globex.id),
        ("Ann", "team.made", "acme", acme.id),
    ]
    assert found[0].details == {"role": ["MEMBER", "ADMIN"]}
    assert found[2].details == {"credit_limit": [10, 20], "budget_window": ["none", "day"]}


async def test_lines_are_found_by_team_actor_action_time_and_page(database: Database) -> None:
    acme, globex = await fill(database)
    async with database.read() as connection:
        whole = await list_entries(connection)
        assert await list_entries(connection, team_id=globex.id) == [whole[0], whole[1], whole[3]]
        assert await list_entries(connection, actor="SYSTEM", team_id=acme.id) == [whole[2]]
        assert await list_entries(connection, actor="ann", action="team") == whole[3:]
        assert await list_entries(connection, action="member.added") == [whole[1]]
        # a beginning counts up to the point alone
        assert await list_entries(connection, action="memb") == []
        assert await list_entries(connection, before=whole[1].id, limit=2) == whole[2:4]
        assert await list_entries(connection, since=now() + timedelta(seconds=1)) == []
        assert await list_entries(connection, until=whole[4].created_at) == []


async def test_a_change_that_does_not_hold_leaves_no_line(database: Database) -> None:
    await fill(database)

    async def fail() -> None:
        async with database.write() as connection:
            await record(connection, ANN, "team.made", "acme")
            await create_team(connection, ANN, "acme")

    with pytest.raises(ConflictError):
        await fail()
    async with database.read() as connection:
        assert len(await list_entries(connection)) == 5


async def test_what_changes_nothing_leaves_no_line(database: Database) -> None:
    acme, globex = await fill(database)
    async with database.write() as connection:
        before = await find_team(connection, acme.id)
        bob = (await list_members(connection, globex.id))[-1]
        assert await change_team(connection, ANN, acme.id) == before
        await change_team(connection, ANN, acme.id, credit_limit=20)
        await change_member(connection, ANN, globex.id, bob.user_id, role="ADMIN")
        created = await create_key(connection, ANN, bob)
        await change_key(connection, ANN, created.key, name=created.key.name)
        lines = await list_entries(connection)
    assert [each.action for each in lines[:2]] == ["key.made", "member.changed"]
    assert len(lines) == 6


async def test_an_action_has_one_form(database: Database) -> None:
    async with database.write() as connection:
        for wrong in ("revoked", "key revoked", "Key.revoked", "key."):
            with pytest.raises(ValueError, match=r"key\.revoked"):
                await record(connection, ANN, wrong, "x")
