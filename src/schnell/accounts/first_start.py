from typing import Final

from sqlalchemy import select

from schnell.accounts.identity import SCOPES
from schnell.accounts.keys import (create_key, digest_key)
from schnell.accounts.teams import (create_team, find_member, list_teams)
from schnell.database.connection import Connection
from schnell.database.tables import api_keys
from schnell.errors import ConfigurationError

_SHORTEST_PRESET: Final = 16
_TEAM: Final = "Default team"


async def prepare_first_start(connection: Connection, preset: str | None = None) -> str | None:
    """Make the first team and its admin key when there is no admin key yet; make `preset` a key when it is none.

    Returns the key that was made at random, to be shown once; None when there is nothing to show.

    Raises:
        ConfigurationError: `preset` is too short to be a secret.
    """
    if preset is not None and len(preset) < _SHORTEST_PRESET:
        raise ConfigurationError(f"SCHNELL_BOOTSTRAP_KEY must have at least {_SHORTEST_PRESET} characters")
    if await _has_key(connection, preset):
        return None
    team = next((team for team in await list_teams(connection) if team.name == _TEAM), None)
    team = team or await create_team(connection, _TEAM, owner="Administrator")
    owner = await find_member(connection, team.id)
    made = await create_key(connection, team.id, owner.user_id, name="first key", scopes=SCOPES, secret=preset)
    return None if preset else made.secret


async def _has_key(connection: Connection, preset: str | None) -> bool:
    wanted = api_keys.c.digest == digest_key(preset) if preset else api_keys.c.scopes.contains("admin")
    return (await connection.execute(select(api_keys.c.id).where(wanted))).first() is not None
