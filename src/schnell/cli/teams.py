from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from schnell.cli.database import (AsJson, DataDir, on_database)
from schnell.cli.output import say
from schnell.cli.tables import (print_value, print_values)

if TYPE_CHECKING:
    from schnell.accounts.identity import Team
    from schnell.database.connection import Connection

teams_app = typer.Typer(help="Teams: who shares a budget and a history.", no_args_is_help=True)
_COLUMNS: Final = ("id", "name", "status", "credit_limit", "used_credit", "budget_window")
_MOST_CREDITS: Final = 10**15
_WINDOWS: Final = ("none", "day", "month")


@teams_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="The team's name.")],
    credit_limit: Annotated[int, typer.Option(min=0, max=_MOST_CREDITS, help="Credits it may use.")] = 100_000_000,
    budget_window: Annotated[str, typer.Option(help="When its budget starts again: none, day or month.")] = "none",
    owner: Annotated[str | None, typer.Option(help="Its first user, an ADMIN; called as the team if absent.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a team with one ADMIN user."""
    from schnell.accounts import teams

    window = check_window(budget_window)

    async def run(connection: "Connection") -> "Team":
        return await teams.create_team(connection, name, credit_limit=credit_limit, budget_window=window, owner=owner)

    team = on_database(data_dir, run)
    if as_json:
        print_value(asdict(team))
    else:
        say(f"made team {team.name!r}; a key for it: schnell keys create --team {team.name!r}")
        typer.echo(team.id)


@teams_app.command("list")
def show_all(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Every team and its budget."""
    from schnell.accounts import teams

    print_values(on_database(data_dir, teams.list_teams), _COLUMNS, as_json=as_json)


@teams_app.command("set")
def change(
    team: Annotated[str, typer.Argument(help="The team's name or id.")],
    credit_limit: Annotated[int | None, typer.Option(min=0, max=_MOST_CREDITS, help="Credits it may use.")] = None,
    budget_window: Annotated[str | None, typer.Option(help="none, day or month.")] = None,
    active: Annotated[bool | None, typer.Option("--active/--inactive", help="Whether its keys work.")] = None,
    may_disable_safety: Annotated[
        bool | None, typer.Option("--allow-unsafe/--forbid-unsafe", help="Whether it may switch the safety check off.")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Change a team."""
    from schnell.accounts import teams

    changes: dict[str, Any] = {"credit_limit": credit_limit, "may_disable_safety": may_disable_safety}
    changes["budget_window"] = check_window(budget_window) if budget_window else None
    changes["status"] = None if active is None else teams.active_status(active=active)
    given = {column: value for column, value in changes.items() if value is not None}

    async def run(connection: "Connection") -> "Team":
        found = await teams.find_team(connection, team)
        return await teams.change_team(connection, found.id, **given)

    print_values([on_database(data_dir, run)], _COLUMNS, as_json=as_json)


def check_window(text: str) -> Any:
    """A budget window's name. Raises typer.BadParameter for another word."""
    if text not in _WINDOWS:
        raise typer.BadParameter(f"must be one of {', '.join(_WINDOWS)}", param_hint="--budget-window")
    return text
