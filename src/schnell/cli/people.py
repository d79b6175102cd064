"""`schnell teams`, `users` and `keys`: who may use the server, and how much."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, cast, get_args

import typer

from schnell.accounts.identity import DEFAULT_CREDIT_LIMIT, BudgetWindow
from schnell.cli.database import DataDir, run_in_transaction
from schnell.cli.output import AsJson, print_json, print_rows, read_moment, say

if TYPE_CHECKING:
    from schnell.accounts.audit import Actor
    from schnell.accounts.identity import ApiKey, Member, Team
    from schnell.accounts.keys import NewKey
    from schnell.database.connection import Connection

teams_app = typer.Typer(help="Teams: who shares a budget and a history.", no_args_is_help=True)
users_app = typer.Typer(help="Users: the members of a team.", no_args_is_help=True)
keys_app = typer.Typer(help="API keys: shown once, kept as a hash.", no_args_is_help=True)

_TEAM_COLUMNS: Final = ("id", "name", "status", "credit_limit", "used_credit", "budget_window")
_USER_COLUMNS: Final = (
    "user_id",
    "user_name",
    "team_id",
    "role",
    "operator",
    "status",
    "credit_limit",
    "used_credit",
    "budget_window",
)
_KEY_COLUMNS: Final = (
    "id",
    "prefix",
    "name",
    "user_name",
    "team_id",
    "scopes",
    "rate_limit",
    "created_at",
    "used_at",
    "expires_at",
    "revoked_at",
    "note",
)

_WINDOWS: Final = get_args(BudgetWindow)
_MOST_CREDITS: Final = 10**15
_TEAM_CREDITS: Final = typer.Option(min=0, max=_MOST_CREDITS, help="Credits it may use.")

OperatorSwitch = Annotated[
    bool | None, typer.Option("--operator/--no-operator", help="Whether they may manage the server with all its teams.")
]
TeamArgument = Annotated[str, typer.Argument(help="The team's name or id.")]
KeyArgument = Annotated[str, typer.Argument(help="The key's id, or its first characters.")]
OneTeam = Annotated[str | None, typer.Option("--team", help="The team's name or id; the only team if absent.")]
TeamFilter = Annotated[str | None, typer.Option("--team", help="Only this team's.")]
UserCredits = Annotated[int | None, typer.Option(min=0, max=_MOST_CREDITS, help="Credits they may use.")]
UserRole = Annotated[bool | None, typer.Option("--admin/--member", help="Their role.")]
NewWindow = Annotated[str | None, typer.Option(help="none, day or month.")]


@teams_app.command("create")
def create_team(
    name: Annotated[str, typer.Argument(help="The team's name.")],
    credit_limit: Annotated[int, _TEAM_CREDITS] = DEFAULT_CREDIT_LIMIT,
    budget_window: Annotated[str, typer.Option(help="When its budget starts again: none, day or month.")] = "none",
    owner: Annotated[str | None, typer.Option(help="Its first user, an ADMIN; called as the team if absent.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a team with one ADMIN user."""
    from schnell.accounts.administration import create_team

    window = _check_window(budget_window)

    async def run(connection: "Connection") -> "Team":
        columns = {"credit_limit": credit_limit, "budget_window": window, "owner": owner}
        return await create_team(connection, here(), name, **columns)

    # the first team may come before the first start
    team = run_in_transaction(data_dir, run, make=True)
    if as_json:
        print_json(asdict(team))
    else:
        say(f"made team {team.name!r}; a key for it: schnell keys create --team {team.name!r}")
        typer.echo(team.id)


@teams_app.command("list")
def list_teams(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Every team and its budget."""
    from schnell.accounts import teams

    print_rows(run_in_transaction(data_dir, teams.list_teams), _TEAM_COLUMNS, as_json=as_json)


@teams_app.command("set")
def set_team(
    team: TeamArgument,
    credit_limit: Annotated[int | None, _TEAM_CREDITS] = None,
    budget_window: NewWindow = None,
    active: Annotated[bool | None, typer.Option("--active/--inactive", help="Whether its keys work.")] = None,
    may_disable_safety: Annotated[
        bool | None, typer.Option("--allow-unsafe/--forbid-unsafe", help="Whether it may switch the safety check off.")
    ] = None,
    may_disable_watermark: Annotated[
        bool | None,
        typer.Option("--allow-unmarked/--forbid-unmarked", help="Whether it may leave the invisible mark out."),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Change a team."""
    from schnell.accounts.administration import change_team
    from schnell.accounts.teams import find_team

    columns = {
        "credit_limit": credit_limit,
        "may_disable_safety": may_disable_safety,
        "may_disable_watermark": may_disable_watermark,
    }
    changes = _changes(columns, budget_window, active)

    async def run(connection: "Connection") -> "Team":
        return await change_team(connection, here(), (await find_team(connection, team)).id, **changes)

    print_rows([run_in_transaction(data_dir, run)], _TEAM_COLUMNS, as_json=as_json)


@users_app.command("create")
def create_user(
    name: Annotated[str, typer.Argument(help="The user's name.")],
    team: OneTeam = None,
    admin: UserRole = False,
    credit_limit: UserCredits = None,
    budget_window: Annotated[str, typer.Option(help="When their budget starts again: none, day or month.")] = "none",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a user and put them into a team."""
    from schnell.accounts.administration import add_member

    window = _check_window(budget_window)

    async def run(connection: "Connection") -> "Member":
        return await add_member(
            connection,
            here(),
            (await one_team(connection, team)).id,
            name,
            role="ADMIN" if admin else "MEMBER",
            credit_limit=credit_limit,
            budget_window=window,
        )

    member = run_in_transaction(data_dir, run)
    if as_json:
        print_json(asdict(member))
    else:
        typer.echo(member.user_id)


@users_app.command("list")
def list_users(team: TeamFilter = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Users, their roles and budgets."""
    from schnell.accounts import teams

    async def run(connection: "Connection") -> "list[Member]":
        return await teams.list_members(connection, await find_team_id(connection, team))

    print_rows(run_in_transaction(data_dir, run), _USER_COLUMNS, as_json=as_json)


@users_app.command("set")
def set_user(
    user: Annotated[str, typer.Argument(help="The user's name or id.")],
    team: OneTeam = None,
    admin: UserRole = None,
    operator: OperatorSwitch = None,
    credit_limit: UserCredits = None,
    budget_window: NewWindow = None,
    active: Annotated[bool | None, typer.Option("--active/--inactive", help="Whether they may sign in.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Change a user's place in a team."""
    from schnell.accounts.administration import change_member
    from schnell.accounts.teams import find_member

    role = None if admin is None else "ADMIN" if admin else "MEMBER"
    changes = _changes({"credit_limit": credit_limit, "role": role, "operator": operator}, budget_window, active)

    async def run(connection: "Connection") -> "Member":
        found = await one_team(connection, team)
        member = await find_member(connection, found.id, user)
        return await change_member(connection, here(), found.id, member.user_id, **changes)

    print_rows([run_in_transaction(data_dir, run)], _USER_COLUMNS, as_json=as_json)


@keys_app.command("create")
def create_key(
    team: OneTeam = None,
    user: Annotated[
        str | None, typer.Option(help="Whose key, by name or id; the team's first user's if absent.")
    ] = None,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="generate, read, admin, operator; may be given again. all: what its user may. [generate, read]"
        ),
    ] = None,
    rate_limit: Annotated[str | None, typer.Option(help="Such as 60/minute; the server's own if absent.")] = None,
    expires: Annotated[
        datetime | None,
        typer.Option(parser=read_moment, metavar="MOMENT", help="The moment it ends, such as 2027-01-31 (UTC)."),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, this once."""
    from schnell.accounts.administration import create_key
    from schnell.accounts.identity import DEFAULT_SCOPES
    from schnell.accounts.teams import find_member

    async def run(connection: "Connection") -> "NewKey":
        member = await find_member(connection, (await one_team(connection, team)).id, user)
        return await create_key(
            connection,
            here(),
            member,
            name=name,
            scopes=member.scopes if scope == ["all"] else scope or DEFAULT_SCOPES,
            rate_limit=rate_limit,
            expires_at=expires,
        )

    made = run_in_transaction(data_dir, run)
    if as_json:
        print_json({"key": made.secret} | asdict(made.key))
    else:
        say(f"a key of {made.key.user_name}'s, which may {', '.join(made.key.scopes)}; it is shown once:")
        typer.echo(made.secret)


@keys_app.command("list")
def list_keys(team: TeamFilter = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Keys, by their first characters."""
    from schnell.accounts import keys

    async def run(connection: "Connection") -> "list[ApiKey]":
        return await keys.list_keys(connection, await find_team_id(connection, team))

    print_rows(run_in_transaction(data_dir, run), _KEY_COLUMNS, as_json=as_json)


@keys_app.command("set")
def set_key(
    key: KeyArgument,
    name: Annotated[str | None, typer.Option(help="What the key is for.")] = None,
    rate_limit: Annotated[str | None, typer.Option(help="Such as 60/minute; none takes its limit away.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="The moment it ends, such as 2027-01-31 (UTC); never takes its end away.")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Change a key's name, its rate limit, or when it ends."""
    from schnell.accounts.administration import change_key
    from schnell.accounts.keys import look_up_key

    changes: dict[str, Any] = {} if name is None else {"name": name}
    if rate_limit is not None:
        changes["rate_limit"] = None if rate_limit == "none" else rate_limit
    if expires is not None:
        changes["expires_at"] = _read_end(expires)

    async def run(connection: "Connection") -> "ApiKey":
        return await change_key(connection, here(), await look_up_key(connection, key), **changes)

    print_rows([run_in_transaction(data_dir, run)], _KEY_COLUMNS, as_json=as_json)


@keys_app.command("revoke")
def revoke_key(
    key: KeyArgument,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key useless from now on."""
    from schnell.accounts.administration import revoke_key

    async def run(connection: "Connection") -> "ApiKey":
        return await revoke_key(connection, here(), key)

    print_rows([run_in_transaction(data_dir, run)], _KEY_COLUMNS, as_json=as_json)


def here() -> "Actor":
    """Whoever types: for the audit log, by the name that the machine knows them by."""
    import getpass

    from schnell.accounts.audit import Actor

    try:
        return Actor(getpass.getuser(), "command line")
    except (KeyError, OSError):  # a container's user may have no name
        return Actor(f"uid {os.getuid()}", "command line")


async def one_team(connection: "Connection", team: str | None) -> "Team":
    """The team that was named, or the only one."""
    from schnell.accounts.teams import find_only_team, find_team

    return await (find_team(connection, team) if team else find_only_team(connection))


async def find_team_id(connection: "Connection", team: str | None) -> str | None:
    """The id of the team that was named, None for all of them. Raises NotFoundError."""
    from schnell.accounts.teams import find_team

    return (await find_team(connection, team)).id if team else None


def _changes(columns: Mapping[str, Any], budget_window: str | None, active: bool | None) -> dict[str, Any]:
    """The columns to set: `columns` and those of the two options, without what was not given (None)."""
    from schnell.accounts.teams import active_status

    changes = {
        **columns,
        "budget_window": _check_window(budget_window) if budget_window else None,
        "status": None if active is None else active_status(active=active),
    }
    return {column: value for column, value in changes.items() if value is not None}


def _read_end(text: str) -> datetime | None:
    if text == "never":
        return None
    try:
        return read_moment(text)
    except typer.BadParameter:
        raise typer.BadParameter("must be a day such as 2027-01-31, or never", param_hint="--expires") from None


def _check_window(text: str) -> BudgetWindow:
    if text not in _WINDOWS:
        raise typer.BadParameter(f"must be one of {', '.join(_WINDOWS)}", param_hint="--budget-window")
    return cast("BudgetWindow", text)
