import pytest

from schnell.accounts.keys import create_key, list_keys
from schnell.accounts.last_uses import LastUses
from schnell.accounts.teams import create_team, find_member
from schnell.clock import now
from schnell.database.session import Database
from schnell.errors import DatabaseUnavailableError


async def make_keys(database: Database, number: int) -> list[str]:
    async with database.write() as connection:
        team = await create_team(connection, "acme")
        member = await find_member(connection, team.id)
        return [(await create_key(connection, team.id, member.user_id)).key.id for _ in range(number)]


async def test_the_last_use_of_each_key_is_written_and_the_others_stay_unused(database: Database) -> None:
    used, also, _ = await make_keys(database, 3)
    uses = LastUses()
    before = now()
    for key in (used, also, used):
        uses.note(key)
    await uses.write(database)
    async with database.read() as connection:
        found = {key.id: key.used_at for key in await list_keys(connection)}
    assert [moment is not None and before <= moment <= now() for moment in found.values()] == [True, True, False]


async def test_an_earlier_use_that_another_server_saw_does_not_go_before_a_later_one(database: Database) -> None:
    (key,) = await make_keys(database, 1)
    early, late = LastUses(), LastUses()
    early.note(key)
    late.note(key)
    await late.write(database)
    async with database.read() as connection:
        (seen,) = await list_keys(connection)
    await early.write(database)
    async with database.read() as connection:
        assert [each.used_at for each in await list_keys(connection)] == [seen.used_at]


async def test_what_could_not_be_written_is_written_next_time(database: Database) -> None:
    (key,) = await make_keys(database, 1)
    uses = LastUses()
    uses.note(key)

    class Away:
        def write(self) -> None:
            raise DatabaseUnavailableError("away")

    with pytest.raises(DatabaseUnavailableError):
        await uses.write(Away())  # type: ignore[arg-type]
    await uses.write(database)
    async with database.read() as connection:
        assert (await list_keys(connection))[0].used_at is not None
