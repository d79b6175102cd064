"""Keys that opened every team become operators' keys, say so, and open nothing less than before."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from schnell.accounts.audit import list_entries
from schnell.accounts.callers import authenticate
from schnell.accounts.keys import digest_key, list_keys
from schnell.accounts.teams import list_members
from schnell.database import migration
from schnell.database.migration import migrate, schema_is_current
from schnell.database.session import Database

NOW = datetime.now(UTC)
SCOPES = {
    "all": "generate,read,admin",
    "alone": "admin",
    "plain": "generate,read",
    "gone": "read,admin",
    "late": "read,admin",
    "inactive": "read,admin",
}


def upgrade(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migration.__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "0006")


def fill(connection: sa.Connection) -> None:
    """A team with a member for each kind of key; only the first is its ADMIN."""
    found = sa.MetaData()
    found.reflect(connection)
    team = {"id": "team", "name": "acme", "status": "ACTIVE", "credit_limit": 1, "used_credit": 0}
    window = {"budget_window": "none", "window_label": "", "created_at": NOW, "updated_at": NOW}
    insert(connection, found.tables["teams"], team | window | {"may_disable_safety": True})
    for name, scopes in SCOPES.items():
        insert(connection, found.tables["users"], {"id": name, "name": name, "created_at": NOW})
        role = "ADMIN" if name == "all" else "MEMBER"
        member = {"team_id": "team", "user_id": name, "role": role, "credit_limit": 1}
        member["status"] = "INACTIVE" if name == "inactive" else "ACTIVE"
        by = {"used_credit": 0, "created_by": "SYSTEM", "updated_by": "SYSTEM"}
        insert(connection, found.tables["members"], member | by | window)
        key = {"id": name, "team_id": "team", "user_id": name, "name": name, "prefix": "schnell_", "scopes": scopes}
        ends = {"created_at": NOW, "revoked_at": NOW if name == "gone" else None}
        ends["expires_at"] = NOW - timedelta(days=1) if name == "late" else None
        insert(connection, found.tables["api_keys"], key | ends | {"digest": digest_key(f"secret of {name}")})


def insert(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> None:
    connection.execute(table.insert().values({name: row[name] for name in row if name in table.c}))


async def test_keys_that_opened_every_team_go_on_to_do_so_and_say_it(database_url: str) -> None:
    database = Database(database_url)
    async with database.write() as connection:
        await connection.run_sync(upgrade)
        await connection.run_sync(fill)
    await migrate(database)
    async with database.read() as connection:
        assert await schema_is_current(connection)
        keys = {key.id: key for key in await list_keys(connection)}
        operators = {each.user_name for each in await list_members(connection) if each.operator}
        callers = {name: await authenticate(connection, f"secret of {name}") for name in ("all", "alone", "plain")}
        entries = await list_entries(connection)
    await database.close()
    assert callers["all"].scopes == ("generate", "read", "admin", "operator")
    assert callers["alone"].scopes == ("admin", "operator")
    assert callers["plain"].scopes == ("generate", "read")
    # a key that was revoked or has run out, or whose member is shut out, makes nobody an operator
    assert operators == {"all", "alone"}
    assert {name for name, key in keys.items() if key.note} == {"all", "alone", "gone", "late", "inactive"}
    assert "`operator`, which was added" in str(keys["all"].note)
    assert sorted((each.action, each.target_id) for each in entries) == [
        ("key.migrated", "all"),
        ("key.migrated", "alone"),
    ]
