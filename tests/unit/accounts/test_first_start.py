import pytest

from schnell.accounts.keys import authenticate, list_keys, prepare_first_start
from schnell.accounts.teams import create_team, list_members, list_teams
from schnell.database.session import Database
from schnell.errors import ConfigurationError


async def start(database: Database, preset: str | None = None) -> str | None:
    async with database.write() as connection:
        return await prepare_first_start(connection, preset)


async def test_the_first_start_makes_one_team_one_admin_and_a_key_shown_once(database: Database) -> None:
    secret = await start(database)
    assert secret is not None
    assert await start(database) is None
    async with database.read() as connection:
        caller = await authenticate(connection, secret)
        assert (caller.role, caller.scopes, caller.rate_limit) == ("ADMIN", ("generate", "read", "admin"), None)
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


async def test_a_short_preset_is_refused(database: Database) -> None:
    with pytest.raises(ConfigurationError, match="at least 16"):
        await start(database, "short")
