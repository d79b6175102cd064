from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from schnell.cli.database import (AsJson, DataDir, on_database)
from schnell.cli.tables import print_values

if TYPE_CHECKING:
    from schnell.accounts.usage import UsageRow
    from schnell.database.connection import Connection

_COLUMNS: Final = ("day", "team", "user", "key", "requests", "failed", "pictures", "credits")
Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="A day, such as 2026-11-01 (UTC).")]


def usage_command(
    team: Annotated[str | None, typer.Option(help="Only this team's.")] = None,
    since: Day = None,
    until: Day = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Requests, pictures and credits by day, team, user and key."""
    from schnell.accounts.teams import find_team
    from schnell.accounts.usage import (collect_usage, write_csv)

    async def run(connection: "Connection") -> "list[UsageRow]":
        return await collect_usage(
            connection,
            team_id=(await find_team(connection, team)).id if team else None,
            since=since.date() if since else None,
            until=until.date() if until else None,
        )

    rows = on_database(data_dir, run)
    if as_csv:
        typer.echo(write_csv(rows), nl=False)
    else:
        print_values(rows, _COLUMNS, as_json=as_json)
