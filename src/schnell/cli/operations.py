"""`schnell usage`, `queue`, `failures` and `storage`: what goes on, out of the database."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from schnell.cli.database import DataDir, run_in_transaction
from schnell.cli.output import AsJson, Day, print_rows
from schnell.cli.people import TeamFilter, find_team_id

if TYPE_CHECKING:
    from schnell.accounts.usage import UsageRow
    from schnell.database.connection import Connection
    from schnell.generations.overview import Failure, StoredOfTeam, UnderWay, UsageGroup

_USAGE: Final = ("day", "team", "user", "key", "requests", "failed", "pictures", "credits", "user_id")
_GROUPS: Final = ("name", "requests", "failed", "pictures", "credits", "id")
_QUEUE: Final = ("created_at", "status", "team", "user", "dialect", "size", "pictures", "cost", "id")
_FAILURES: Final = ("count", "code", "last_at", "team", "user", "message")
_STORED: Final = ("team", "pictures", "bytes")

By = Annotated[
    str | None, typer.Option(help="day, team, user, model or lora; by day, team, user and key at once if absent.")
]


def usage_command(
    team: TeamFilter = None,
    since: Day = None,
    until: Day = None,
    by: By = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Requests, pictures and credits by day, team, user and key, or by one of them, model or LoRA."""
    from schnell.accounts.usage import collect_usage, write_csv
    from schnell.generations.overview import GROUPINGS, group_usage

    if by is not None and by not in GROUPINGS:
        raise typer.BadParameter(f"must be one of {', '.join(GROUPINGS)}", param_hint="--by")

    async def run(connection: "Connection") -> "list[UsageRow] | list[UsageGroup]":
        team_id = await find_team_id(connection, team)
        first, last = since.date() if since else None, until.date() if until else None
        if by is None:
            return await collect_usage(connection, team_id=team_id, since=first, until=last)
        return await group_usage(connection, by, team_id=team_id, since=first, until=last)

    rows = run_in_transaction(data_dir, run)
    columns = _USAGE if by is None else _GROUPS
    if as_csv:
        typer.echo(write_csv(rows, columns), nl=False)
    else:
        print_rows(rows, columns, as_json=as_json)


def queue_command(team: TeamFilter = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """What waits or is being drawn. It is cancelled on the page /admin, or over HTTP."""
    from schnell.generations.overview import list_under_way

    async def run(connection: "Connection") -> "list[UnderWay]":
        return await list_under_way(connection, await find_team_id(connection, team))

    print_rows(run_in_transaction(data_dir, run), _QUEUE, as_json=as_json)


def failures_command(
    team: TeamFilter = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How far to look back.")] = 7,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """What failed, by kind: how often, and the last of each."""
    from schnell.generations.overview import list_failures

    async def run(connection: "Connection") -> "list[Failure]":
        return await list_failures(connection, await find_team_id(connection, team), days)

    print_rows(run_in_transaction(data_dir, run), _FAILURES, as_json=as_json)


def storage_command(team: TeamFilter = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Stored pictures by team, in bytes."""
    from schnell.generations.overview import list_stored

    async def run(connection: "Connection") -> "list[StoredOfTeam]":
        return await list_stored(connection, await find_team_id(connection, team))

    print_rows(run_in_transaction(data_dir, run), _STORED, as_json=as_json)
