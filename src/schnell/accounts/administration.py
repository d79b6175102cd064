"""What administrators and operators do to teams, members and keys, each with its line in the audit log.

The HTTP API, the pages and the command line change accounts through these functions only. Who may is decided before:
`team_for` and `check_may_change` say so for callers; on the command line everything is allowed.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from schnell.accounts import keys, teams
from schnell.accounts.audit import Actor, differences, record
from schnell.accounts.identity import DEFAULT_SCOPES, ApiKey, Caller, Member, Team
from schnell.accounts.invites import revoke_invites
from schnell.accounts.keys import NewKey
from schnell.accounts.sessions import end_sessions
from schnell.database.connection import Connection
from schnell.errors import FieldProblem, ForbiddenError, InvalidFieldError, NotFoundError


def check_team(caller: Caller, team_id: str) -> None:
    """Let operators into every team, and others into their own.

    Raises:
        NotFoundError: the team is another's: whether there is such a team is nothing that others are told.
    """
    if not caller.is_operator and caller.team_id != team_id:
        raise NotFoundError(f"no team has the id {team_id!r}")


def check_may_change(caller: Caller, member: Member) -> None:
    """Keep administrators of a team from locking out, or becoming, an operator who is in it.

    Raises:
        ForbiddenError: the member is an operator, and the caller is not.
    """
    if member.operator and not caller.is_operator:
        raise ForbiddenError(f"{member.user_name} is an operator of this server: only operators may do this")


def check_owner(caller: Caller) -> None:
    """Keep who was lent a key from making its owner's account their own: it ends, or may less, for a reason.

    Raises:
        ForbiddenError: the key may less than its owner, expires, or has a rate limit.
    """
    if not caller.is_owner:
        raise ForbiddenError(
            "a key that may less than its owner, expires, or has a rate limit changes nothing of the account: "
            "sign in with your password or OpenID, or use a key without limits"
        )


def check_not_lent(caller: Caller) -> None:
    """Keep an administrator's key that ends from making what goes on without it: members, their keys and invites.

    Raises:
        ForbiddenError: the key expires, or has a rate limit.
    """
    if caller.lent:
        raise ForbiddenError(
            "a key that expires or has a rate limit makes no members, keys or invites, which would outlast it"
        )


async def create_team(connection: Connection, actor: Actor, name: str, **columns: Any) -> Team:
    """As `teams.create_team`."""
    team = await teams.create_team(connection, name, **columns)
    details = {"credit_limit": team.credit_limit, "budget_window": team.budget_window}
    await record(connection, actor, "team.made", team.name, target_id=team.id, team_id=team.id, details=details)
    return team


async def change_team(connection: Connection, actor: Actor, team_id: str, **changes: Any) -> Team:
    """As `teams.change_team`."""
    before = await teams.find_team(connection, team_id)
    team = await teams.change_team(connection, before.id, **changes)
    if details := differences(before, team):
        await record(connection, actor, "team.changed", team.name, target_id=team.id, team_id=team.id, details=details)
    return team


async def add_member(connection: Connection, actor: Actor, team_id: str, name: str, **columns: Any) -> Member:
    """As `teams.add_member`; the actor is who has made the member."""
    member = await teams.add_member(connection, team_id, name, created_by=actor.name, **columns)
    details = {"role": member.role, "credit_limit": member.credit_limit}
    await _record_member(connection, actor, "member.added", member, details)
    return member


async def change_member(
    connection: Connection, actor: Actor, team_id: str, user_id: str, *, operator: bool | None = None, **changes: Any
) -> Member:
    """As `teams.change_member`; with `operator`, make the user one, or no longer one. Inactive members are signed out.

    Who rises can no longer be let in by links of before, and who falls takes the links along that they have made.

    Raises:
        InvalidFieldError: nobody would be left who may manage the server.
    """
    before = await teams.find_member(connection, team_id, user_id)
    ends = operator is False or changes.get("status") == "INACTIVE"
    if ends and before.operator and await is_last_operator(connection, before):
        problem = f"{before.user_name} is the only active operator: make another one first"
        raise InvalidFieldError(FieldProblem("operator" if operator is False else "status", problem))
    if operator is not None:
        await teams.set_operator(connection, before.user_id, operator=operator)
    member = await teams.change_member(connection, team_id, before.user_id, updated_by=actor.name, **changes)
    if member.status != "ACTIVE":
        await end_sessions(connection, member.user_id)
    if details := differences(before, member):
        await _record_member(connection, actor, "member.changed", member, details)
    await _revoke_invites(connection, actor, before, member)
    return member


async def _revoke_invites(connection: Connection, actor: Actor, before: Member, after: Member) -> None:
    gained, lost = set(after.scopes) - set(before.scopes), set(before.scopes) - set(after.scopes)
    if gained:
        # an administrator who holds a link of a member would, with it, become what the member is now
        await revoke_invites(connection, actor, made_for=after.user_id)
    if lost or after.status != "ACTIVE":
        await revoke_invites(connection, actor, made_by=after.user_id)


async def is_last_operator(connection: Connection, member: Member) -> bool:
    """Whether nobody but this member may manage the server."""
    active = {team.id for team in await teams.list_teams(connection) if team.status == "ACTIVE"}
    others = (each for each in await teams.list_members(connection) if each.user_id != member.user_id)
    return not any(each.operator and each.status == "ACTIVE" and each.team_id in active for each in others)


async def create_key(
    connection: Connection,
    actor: Actor,
    member: Member,
    *,
    scopes: Sequence[str] = DEFAULT_SCOPES,
    **columns: Any,
) -> NewKey:
    """As `keys.create_key`, for this member."""
    made = await keys.create_key(connection, member.team_id, member.user_id, scopes=scopes, **columns)
    details = {"of": member.user_name, "scopes": list(made.key.scopes), "expires_at": _moment(made.key.expires_at)}
    await _record_key(connection, actor, "key.made", made.key, details)
    return made


async def change_key(connection: Connection, actor: Actor, key: ApiKey, **changes: Any) -> ApiKey:
    """As `keys.change_key`. `key` is as it was before."""
    changed = await keys.change_key(connection, key.id, **changes)
    if details := differences(key, changed):
        await _record_key(connection, actor, "key.changed", changed, {"of": key.user_name} | details)
    return changed


async def revoke_key(connection: Connection, actor: Actor, id_or_prefix: str) -> ApiKey:
    """As `keys.revoke_key`. Browsers that signed in with the key are signed out by it."""
    key = await keys.revoke_key(connection, id_or_prefix)
    await _record_key(connection, actor, "key.revoked", key, {"of": key.user_name})
    return key


async def record_lora(  # noqa: PLR0913 - one argument a column
    connection: Connection, actor: Actor, action: str, name: str, *, lora_id: str, owner: str
) -> None:
    """The line about a LoRA that came into a library or left it; `owner` is a team's id, or empty for every team's."""
    details = {"public": not owner}
    await record(connection, actor, action, name, target_id=lora_id, team_id=owner or None, details=details)


async def record_token(connection: Connection, actor: Actor, action: str, site: str, team_id: str) -> None:
    """The line about a team's token for a site. The token itself stands nowhere."""
    await record(connection, actor, action, site, team_id=team_id)


async def _record_member(
    connection: Connection, actor: Actor, action: str, member: Member, details: dict[str, Any]
) -> None:
    ids = {"target_id": member.user_id, "team_id": member.team_id}
    await record(connection, actor, action, member.user_name, details=details, **ids)


async def _record_key(connection: Connection, actor: Actor, action: str, key: ApiKey, details: dict[str, Any]) -> None:
    target = f"{key.name} ({key.prefix}…)"
    await record(connection, actor, action, target, target_id=key.id, team_id=key.team_id, details=details)


def _moment(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
