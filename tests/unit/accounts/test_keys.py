from datetime import datetime, timedelta
from hashlib import sha256

import pytest
from sqlalchemy import select, update

from schnell.accounts.callers import authenticate
from schnell.accounts.keys import (
    NewKey,
    change_key,
    create_key,
    list_keys,
    prepare_first_start,
    revoke_key,
)
from schnell.accounts.teams import (
    add_member,
    change_member,
    change_team,
    create_team,
    find_member,
    list_members,
    list_teams,
    set_operator,
)
from schnell.clock import now
from schnell.database.session import Database
from schnell.database.tables import api_keys
from schnell.errors import InvalidFieldError, NotFoundError, UnauthorizedError


async def make_key(database: Database, **options: object) -> NewKey:
    async with database.write() as connection:
        team = await create_team(connection, "acme", owner="Ann")
        member = await find_member(connection, team.id)
        return await create_key(connection, team.id, member.user_id, **options)  # type: ignore[arg-type]


async def end(database: Database, made: NewKey) -> datetime:
    """Let the key's time pass."""
    ended = now() - timedelta(seconds=1)
    async with database.write() as connection:
        await connection.execute(update(api_keys).where(api_keys.c.id == made.key.id).values(expires_at=ended))
    return ended


async def caller_of(database: Database, secret: str) -> str:
    async with database.read() as connection:
        return (await authenticate(connection, secret)).user_name


async def test_a_key_opens_its_owners_account(database: Database) -> None:
    made = await make_key(database)
    assert await caller_of(database, made.secret) == "Ann"


async def test_only_a_hash_of_256_random_bits_is_kept(database: Database) -> None:
    made = await make_key(database)
    assert len(made.secret) >= len("schnell_") + 43
    async with database.read() as connection:
        row = (await connection.execute(select(api_keys))).one()
    assert row.digest == sha256(made.secret.encode()).hexdigest()
    assert made.secret not in map(str, row)
    assert made.secret.startswith(row.prefix)
    assert len(row.prefix) < 20


async def test_an_unknown_key_is_refused(database: Database) -> None:
    await make_key(database)
    with pytest.raises(UnauthorizedError, match="not valid"):
        await caller_of(database, "schnell_wrong")


async def test_a_revoked_key_is_refused_by_name(database: Database) -> None:
    made = await make_key(database)
    async with database.write() as connection:
        await revoke_key(connection, made.key.prefix)
    with pytest.raises(UnauthorizedError, match="API Key has been deleted"):
        await caller_of(database, made.secret)


async def test_an_expired_key_is_refused(database: Database) -> None:
    made = await make_key(database, expires_at=now() + timedelta(hours=1))
    await end(database, made)
    with pytest.raises(UnauthorizedError, match="expired"):
        await caller_of(database, made.secret)


async def test_a_key_is_not_made_or_changed_to_have_ended_or_no_name(database: Database) -> None:
    ended = now() - timedelta(seconds=1)
    with pytest.raises(InvalidFieldError, match="expiresAt: must be in the future"):
        await make_key(database, expires_at=ended)
    with pytest.raises(InvalidFieldError, match="name: must not be empty"):
        await make_key(database, name=" ")
    made = await make_key(database)
    for wrong in ({"expires_at": ended}, {"name": ""}):
        async with database.write() as connection:
            with pytest.raises(InvalidFieldError):
                await change_key(connection, made.key.id, **wrong)


async def test_a_key_that_has_ended_can_be_named_anew_with_its_end_and_begin_again(database: Database) -> None:
    made = await make_key(database, expires_at=now() + timedelta(hours=1))
    ended = await end(database, made)
    async with database.write() as connection:
        changed = await change_key(connection, made.key.id, name="old", expires_at=ended)
        assert (changed.name, changed.expires_at) == ("old", ended)
        assert (await change_key(connection, made.key.id, expires_at=None)).expires_at is None


@pytest.mark.parametrize("who", ["team", "member"])
async def test_an_inactive_team_or_member_locks_its_keys(database: Database, who: str) -> None:
    made = await make_key(database)
    async with database.write() as connection:
        if who == "team":
            await change_team(connection, made.key.team_id, status="INACTIVE")
        else:
            await change_member(connection, made.key.team_id, made.key.user_id, status="INACTIVE")
    with pytest.raises(UnauthorizedError, match=r"API Key is not active\. Please contact your team administrator"):
        await caller_of(database, made.secret)


@pytest.mark.parametrize("options", [{"scopes": ["fly"]}, {"scopes": []}, {"rate_limit": "often"}])
async def test_unknown_scopes_and_rates_are_refused(database: Database, options: dict[str, object]) -> None:
    with pytest.raises(InvalidFieldError):
        await make_key(database, **options)


async def test_revoking_needs_one_match(database: Database) -> None:
    await make_key(database)
    async with database.write() as connection:
        for wrong in ("schnell_", "nobody", ""):
            with pytest.raises(NotFoundError):
                await revoke_key(connection, wrong)
        assert [key.revoked_at for key in await list_keys(connection)] == [None]


async def test_a_key_is_revoked_once_and_keeps_the_time(database: Database) -> None:
    made = await make_key(database)
    async with database.write() as connection:
        once = await revoke_key(connection, made.key.id)
        again = await revoke_key(connection, made.key.prefix)
    assert once.revoked_at is not None
    assert again == once


async def test_a_key_says_who_calls_and_what_they_may(database: Database) -> None:
    made = await make_key(database, scopes=["read", "generate", "read"], rate_limit="60/minute")
    async with database.read() as connection:
        caller = await authenticate(connection, made.secret)
        with pytest.raises(UnauthorizedError, match="not valid"):
            await authenticate(connection, made.key.id)
    assert (caller.key_id, caller.scopes, caller.rate_limit) == (made.key.id, ("generate", "read"), "60/minute")
    assert (made.key.user_name, caller.session_id) == ("Ann", None)


async def test_no_key_may_more_than_its_owner(database: Database) -> None:
    with pytest.raises(InvalidFieldError, match="Ann is no operator"):
        await make_key(database, scopes=["read", "operator"])
    made = await make_key(database, scopes=["read", "admin"])
    async with database.write() as connection:
        bob = await add_member(connection, made.key.team_id, "Bob")
        with pytest.raises(InvalidFieldError, match="Bob is no administrator"):
            await create_key(connection, bob.team_id, bob.user_id, scopes=["admin"])
        assert (await authenticate(connection, made.secret)).scopes == ("read", "admin")
        # what an owner loses, their keys lose at once
        await change_member(connection, made.key.team_id, made.key.user_id, role="MEMBER")
        assert (await authenticate(connection, made.secret)).scopes == ("read",)
        # and an operator may manage every team, whatever their role in one
        await set_operator(connection, made.key.user_id, operator=True)
        assert (await authenticate(connection, made.secret)).scopes == ("read", "admin")


async def test_a_preset_key_shows_no_more_than_half_of_itself(database: Database) -> None:
    made = await make_key(database, secret="twenty-characters-xx")
    assert made.key.prefix == "twenty-cha"
    assert await caller_of(database, "twenty-characters-xx") == "Ann"


async def start(database: Database, preset: str | None = None) -> str | None:
    async with database.write() as connection:
        return await prepare_first_start(connection, preset)


async def test_the_first_start_makes_one_team_one_admin_and_a_key_shown_once(database: Database) -> None:
    secret = await start(database)
    assert secret is not None
    assert await start(database) is None
    async with database.read() as connection:
        caller = await authenticate(connection, secret)
        assert (caller.role, caller.scopes, caller.rate_limit) == (
            "ADMIN",
            ("generate", "read", "admin", "operator"),
            None,
        )
        assert [team.credit_limit for team in await list_teams(connection)] == [100_000_000]
        assert len(await list_members(connection)) == 1


async def test_a_preset_key_works_and_is_not_shown(database: Database) -> None:
    preset = "my-own-preset-key"
    assert await start(database, preset) is None
    assert await start(database, preset) is None
    async with database.read() as connection:
        assert (await authenticate(connection, preset)).role == "ADMIN"
        assert len(await list_keys(connection)) == 1
        assert all(preset not in key.prefix for key in await list_keys(connection))


async def test_teams_made_before_the_first_start_do_not_prevent_the_first_key(database: Database) -> None:
    async with database.write() as connection:
        await create_team(connection, "early")
    assert await start(database)


async def test_a_revoked_first_key_is_not_replaced_by_the_next_start(database: Database) -> None:
    secret = await start(database)
    assert secret is not None
    async with database.write() as connection:
        [key] = await list_keys(connection)
        await revoke_key(connection, key.id)
    assert await start(database) is None
    async with database.read() as connection:
        assert len(await list_keys(connection)) == 1
