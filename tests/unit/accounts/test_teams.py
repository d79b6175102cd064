from datetime import timedelta

import pytest
from sqlalchemy import update

from schnell.accounts.identity import DEFAULT_CREDIT_LIMIT, SYSTEM, Team
from schnell.accounts.teams import (
    active_status,
    add_member,
    change_member,
    change_team,
    create_team,
    find_member,
    find_members,
    find_team,
    list_members,
    list_teams,
)
from schnell.clock import now
from schnell.database.session import Database
from schnell.database.tables import members, teams
from schnell.errors import ConflictError, InvalidFieldError, NotFoundError


async def make_team(database: Database, name: str = "acme", **options: object) -> Team:
    async with database.write() as connection:
        return await create_team(connection, name, **options)  # type: ignore[arg-type]


async def test_a_team_begins_active_with_one_administrator_who_may_use_all_of_it(database: Database) -> None:
    team = await make_team(database, credit_limit=700, budget_window="month", owner="Ann")
    assert (team.name, team.status, team.credit_limit, team.used_credit) == ("acme", "ACTIVE", 700, 0)
    assert (team.budget_window, team.may_disable_safety) == ("month", True)
    assert now() - timedelta(minutes=1) < team.created_at == team.updated_at <= now()
    async with database.read() as connection:
        [owner] = await list_members(connection, team.id)
    assert (owner.user_name, owner.role, owner.status, owner.created_by) == ("Ann", "ADMIN", "ACTIVE", SYSTEM)
    assert (owner.credit_limit, owner.used_credit, owner.budget_window) == (700, 0, "none")


async def test_a_team_without_more_words_has_the_default_limit_and_an_owner_of_its_name(database: Database) -> None:
    team = await make_team(database)
    assert team.credit_limit == DEFAULT_CREDIT_LIMIT
    async with database.read() as connection:
        assert (await find_member(connection, team.id)).user_name == "acme"


async def test_a_second_team_of_one_name_is_refused_and_nothing_of_it_stays(database: Database) -> None:
    first = await make_team(database)
    with pytest.raises(ConflictError, match="a team is called 'acme' already"):
        await make_team(database)
    async with database.read() as connection:
        assert await list_teams(connection) == [first]
        assert len(await list_members(connection)) == 1


async def test_teams_are_found_by_id_and_by_name_and_listed_oldest_first(database: Database) -> None:
    made = [await make_team(database, name) for name in ("zebra", "apple")]
    async with database.write() as connection:
        await connection.execute(
            update(teams).where(teams.c.name == "zebra").values(created_at=now() - timedelta(days=1))
        )
    async with database.read() as connection:
        assert [team.name for team in await list_teams(connection)] == ["zebra", "apple"]
        assert (await find_team(connection, "apple")) == (await find_team(connection, made[1].id)) == made[1]
        with pytest.raises(NotFoundError, match="no team is called 'pear'"):
            await find_team(connection, "pear")


async def test_a_change_of_a_team_sets_what_it_names_and_the_time(database: Database) -> None:
    team = await make_team(database)
    async with database.write() as connection:
        await connection.execute(update(teams).values(updated_at=now() - timedelta(days=1)))
        changed = await change_team(connection, team.id, status="INACTIVE", credit_limit=5)
        with pytest.raises(NotFoundError):
            await change_team(connection, "nobody", credit_limit=5)
    assert (changed.status, changed.credit_limit, changed.name) == ("INACTIVE", 5, "acme")
    assert changed.updated_at >= team.updated_at
    assert changed.created_at == team.created_at


async def test_a_member_has_the_teams_limit_unless_another_is_given(database: Database) -> None:
    team = await make_team(database, credit_limit=900)
    async with database.write() as connection:
        plain = await add_member(connection, team.id, "Bob", created_by="Ann")
        small = await add_member(
            connection, team.id, "Cid", credit_limit=0, role="ADMIN", budget_window="day", avatar="https://a.test/c.png"
        )
        with pytest.raises(NotFoundError):
            await add_member(connection, "nobody", "Dan")
    assert (plain.credit_limit, plain.role, plain.created_by, plain.updated_by) == (900, "MEMBER", "Ann", "Ann")
    assert (small.credit_limit, small.role, small.budget_window) == (0, "ADMIN", "day")
    assert small.user_avatar == "https://a.test/c.png"


async def test_members_are_found_in_their_own_team_only(database: Database) -> None:
    team, other = await make_team(database, owner="Ann"), await make_team(database, "other", owner="Zoe")
    async with database.write() as connection:
        ann, zoe = await find_member(connection, team.id), await find_member(connection, other.id)
        bob = await add_member(connection, team.id, "Bob")
        earlier = update(members).where(members.c.user_id == ann.user_id).values(created_at=now() - timedelta(days=1))
        await connection.execute(earlier)
    async with database.read() as connection:
        for known in (bob.user_id, "Bob"):
            assert await find_member(connection, team.id, known) == bob
        assert (await find_member(connection, team.id)).user_id == ann.user_id
        for stranger in (zoe.user_id, "Zoe", "nobody"):
            with pytest.raises(NotFoundError, match="the team has no member"):
                await find_member(connection, team.id, stranger)
        with pytest.raises(NotFoundError, match="the team has no members"):
            await find_member(connection, "nobody")
        assert [each.user_name for each in await list_members(connection, team.id)] == ["Ann", "Bob"]
        assert {each.user_name for each in await list_members(connection)} == {"Ann", "Bob", "Zoe"}


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_several_members_are_found_at_once_and_strangers_left_out(database: Database, count: int) -> None:
    team, other = await make_team(database), await make_team(database, "other")
    async with database.write() as connection:
        made = [await add_member(connection, team.id, f"member {number}") for number in range(3)]
        stranger = await find_member(connection, other.id)
        wanted = [each.user_id for each in made[:count]]
        found = await find_members(connection, team.id, [*wanted, *wanted, stranger.user_id, "nobody"])
        assert {each.user_id: each for each in found} == {each.user_id: each for each in made[:count]}
        assert await find_members(connection, team.id, [stranger.user_id]) == []


async def test_a_change_of_a_member_sets_what_it_names_and_says_who_did_it(database: Database) -> None:
    team = await make_team(database, owner="Ann")
    async with database.write() as connection:
        ann = await find_member(connection, team.id)
        changed = await change_member(connection, team.id, ann.user_id, updated_by="Bob", role="MEMBER", credit_limit=3)
        with pytest.raises(NotFoundError):
            await change_member(connection, team.id, "nobody", role="ADMIN")
    assert (changed.role, changed.credit_limit, changed.updated_by, changed.created_by) == ("MEMBER", 3, "Bob", SYSTEM)


async def test_use_of_a_budget_window_that_has_ended_is_shown_as_none(database: Database) -> None:
    team = await make_team(database, budget_window="day")
    async with database.write() as connection:
        for table in (teams, members):
            await connection.execute(
                update(table).values(used_credit=40, budget_window="day", window_label="2020-01-01")
            )
        assert (await find_team(connection, team.id)).used_credit == 0
        assert (await find_member(connection, team.id)).used_credit == 0
        for table in (teams, members):
            await connection.execute(update(table).values(window_label=f"{now():%Y-%m-%d}"))
        assert (await find_team(connection, team.id)).used_credit == 40
        assert (await find_member(connection, team.id)).used_credit == 40


@pytest.mark.parametrize("name", ["SYSTEM", " system", "\uff33YSTEM"])
async def test_nobody_is_called_as_the_server_calls_itself(database: Database, name: str) -> None:
    team = await make_team(database)
    with pytest.raises(InvalidFieldError, match="calls itself"):
        async with database.write() as connection:
            await add_member(connection, team.id, name)


def test_a_switch_stands_for_a_status() -> None:
    assert (active_status(active=True), active_status(active=False)) == ("ACTIVE", "INACTIVE")
