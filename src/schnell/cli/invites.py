"""`schnell invites` and `schnell audit`: who may come in, and what administrators did."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from schnell.cli.database import DataDir, run_in_transaction
from schnell.cli.output import AsJson, Day, print_json, print_rows, say
from schnell.cli.people import OneTeam, TeamFilter, here, one_team

if TYPE_CHECKING:
    from schnell.accounts.audit import Entry
    from schnell.accounts.invites import Invite, NewInvite
    from schnell.database.connection import Connection

invites_app = typer.Typer(help="Invites: links with which people join a team.", no_args_is_help=True)

_INVITE_COLUMNS: Final = (
    "id",
    "user_name",
    "team_name",
    "role",
    "created_by",
    "expires_at",
    "accepted_at",
    "revoked_at",
)
_AUDIT_COLUMNS: Final = ("created_at", "actor", "via", "action", "target", "details")


@invites_app.command("create")
def create_invite(
    name: Annotated[str, typer.Argument(help="Who is invited; with --again, a member's name or id.")],
    team: OneTeam = None,
    admin: Annotated[bool, typer.Option("--admin/--member", help="Their role.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Let a member choose how to sign in anew.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a link for one person, and show it, this once."""
    from schnell.accounts.invites import make_invite
    from schnell.accounts.teams import find_member

    async def run(connection: "Connection") -> "NewInvite":
        found = await one_team(connection, team)
        if again:
            member = await find_member(connection, found.id, name)
            ids = (found.id, member.user_name)
            return await make_invite(connection, here(), *ids, role=member.role, user_id=member.user_id)
        return await make_invite(connection, here(), found.id, name, role="ADMIN" if admin else "MEMBER")

    made = run_in_transaction(data_dir, run)
    link = f"{_base_url(data_dir)}/join#invite={made.secret}"
    if as_json:
        print_json({"link": link} | asdict(made.invite))
    else:
        say(f"send this link to {made.invite.user_name}; it works once, until {made.invite.expires_at:%Y-%m-%d}:")
        typer.echo(link)


@invites_app.command("list")
def list_invites(team: OneTeam = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """A team's invites, the newest first."""
    from schnell.accounts import invites

    async def run(connection: "Connection") -> "list[Invite]":
        return await invites.list_invites(connection, (await one_team(connection, team)).id)

    print_rows(run_in_transaction(data_dir, run), _INVITE_COLUMNS, as_json=as_json)


@invites_app.command("revoke")
def revoke_invite(
    invite: Annotated[str, typer.Argument(help="The invite's id.")], data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """Make an invite's link useless from now on."""
    from schnell.accounts import invites

    async def run(connection: "Connection") -> "Invite":
        return await invites.revoke_invite(connection, here(), invite)

    print_rows([run_in_transaction(data_dir, run)], _INVITE_COLUMNS, as_json=as_json)


def audit_command(
    team: TeamFilter = None,
    actor: Annotated[str | None, typer.Option(help="Only by this user, by name or id.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, or all of a kind: key.revoked, or key.")] = None,
    since: Day = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many lines at most.")] = 100,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """What administrators, operators and commands did, the newest first."""
    from schnell.accounts.audit import list_entries

    async def run(connection: "Connection") -> "list[Entry]":
        team_id = (await one_team(connection, team)).id if team else None
        return await list_entries(connection, team_id=team_id, actor=actor, action=action, since=since, limit=limit)

    print_rows(run_in_transaction(data_dir, run), _AUDIT_COLUMNS, as_json=as_json)


def _base_url(data_dir: Path | None) -> str:
    from schnell.bootstrap import read_settings

    return read_settings(data_dir=data_dir).base_url
