from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from schnell.cli.database import (AsJson, DataDir, on_database)
from schnell.cli.output import say
from schnell.cli.tables import (print_value, print_values)

if TYPE_CHECKING:
    from schnell.accounts.identity import ApiKey
    from schnell.accounts.keys import NewKey
    from schnell.database.connection import Connection

keys_app = typer.Typer(help="API keys: shown once, kept as a hash.", no_args_is_help=True)
_COLUMNS: Final = ("id", "prefix", "name", "team_id", "scopes", "rate_limit", "created_at", "expires_at", "revoked_at")


@keys_app.command("create")
def create(
    team: Annotated[str, typer.Option("--team", help="The team's name or id.")],
    user: Annotated[str | None, typer.Option(help="The user's name or id; the team's first if absent.")] = None,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    scope: Annotated[list[str] | None, typer.Option(help="generate, read or admin; may be given again.")] = None,
    rate_limit: Annotated[str | None, typer.Option(help="Such as 60/minute; the server's own if absent.")] = None,
    expires: Annotated[datetime | None, typer.Option(help="The moment it ends, such as 2027-01-31 (UTC).")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, this once."""
    from schnell.accounts import (keys, teams)
    from schnell.accounts.identity import DEFAULT_SCOPES

    expires_at = expires.replace(tzinfo=UTC) if expires else None

    async def run(connection: "Connection") -> "NewKey":
        found = await teams.find_team(connection, team)
        member = await teams.find_member(connection, found.id, user)
        return await keys.create_key(
            connection,
            found.id,
            member.user_id,
            name=name,
            scopes=scope or DEFAULT_SCOPES,
            rate_limit=rate_limit,
            expires_at=expires_at,
        )

    made = on_database(data_dir, run)
    if as_json:
        print_value({"key": made.secret} | asdict(made.key))
    else:
        say("this key is shown once:")
        typer.echo(made.secret)


@keys_app.command("list")
def show_all(
    team: Annotated[str | None, typer.Option("--team", help="Only this team's.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Keys, by their first characters."""
    from schnell.accounts import (keys, teams)

    async def run(connection: "Connection") -> "list[ApiKey]":
        found = await teams.find_team(connection, team) if team else None
        return await keys.list_keys(connection, found.id if found else None)

    print_values(on_database(data_dir, run), _COLUMNS, as_json=as_json)


@keys_app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="The key's id, or its first characters.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key useless from now on."""
    from schnell.accounts import keys

    async def run(connection: "Connection") -> "ApiKey":
        return await keys.revoke_key(connection, key)

    print_values([on_database(data_dir, run)], _COLUMNS, as_json=as_json)
