from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from schnell.cli.database import (AsJson, DataDir, on_database)
from schnell.cli.tables import (print_value, print_values)
from schnell.cli.teams import check_window

if TYPE_CHECKING:
    from schnell.accounts.identity import Member
    from schnell.database.connection import Connection

users_app = typer.Typer(help="Users: the members of a team.", no_args_is_help=True)
_COLUMNS: Final = ("user_id", "user_name", "team_id", "role", "status", "credit_limit", "used_credit", "budget_window")

TeamOption = Annotated[str, typer.Option("--team", help="The team's name or id.")]
AdminOption = Annotated[bool | None, typer.Option("--admin/--member", help="Their role.")]
LimitOption = Annotated[int | None, typer.Option(min=0, max=10**15, help="Credits they may use.")]


@users_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="The user's name.")],
    team: TeamOption,
    admin: AdminOption = False,
    credit_limit: LimitOption = None,
    budget_window: Annotated[str, typer.Option(help="When their budget starts again: none, day or month.")] = "none",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a user and put them into a team."""
    from schnell.accounts import teams

    window = check_window(budget_window)

    async def run(connection: "Connection") -> "Member":
        return await teams.add_member(
            connection,
            team,
            name,
            role="ADMIN" if admin else "MEMBER",
            credit_limit=credit_limit,
            budget_window=window,
        )

    member = on_database(data_dir, run)
    if as_json:
        print_value(asdict(member))
    else:
        typer.echo(member.user_id)


@users_app.command("list")
def show_all(
    team: Annotated[str | None, typer.Option("--team", help="Only this team's.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Users, their roles and budgets."""
    from schnell.accounts import teams

    async def run(connection: "Connection") -> "list[Member]":
        found = await teams.find_team(connection, team) if team else None
        return await teams.list_members(connection, found.id if found else None)

    print_values(on_database(data_dir, run), _COLUMNS, as_json=as_json)


@users_app.command("set")
def change(
    user: Annotated[str, typer.Argument(help="The user's name or id.")],
    team: TeamOption,
    admin: AdminOption = None,
    credit_limit: LimitOption = None,
    budget_window: Annotated[str | None, typer.Option(help="none, day or month.")] = None,
    active: Annotated[bool | None, typer.Option("--active/--inactive", help="Whether their keys work.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Change a user's place in a team."""
    from schnell.accounts import teams

    changes: dict[str, Any] = {"credit_limit": credit_limit}
    changes["role"] = None if admin is None else "ADMIN" if admin else "MEMBER"
    changes["budget_window"] = check_window(budget_window) if budget_window else None
    changes["status"] = None if active is None else teams.active_status(active=active)
    given = {column: value for column, value in changes.items() if value is not None}

    async def run(connection: "Connection") -> "Member":
        found = await teams.find_team(connection, team)
        member = await teams.find_member(connection, found.id, user)
        return await teams.change_member(connection, found.id, member.user_id, **given)

    print_values([on_database(data_dir, run)], _COLUMNS, as_json=as_json)
