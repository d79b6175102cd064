"""Invites: links, made by an administrator, with which somebody becomes a member, or a member gets a new password."""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, Select, select, update

from schnell.accounts import teams
from schnell.accounts.audit import Actor, record
from schnell.accounts.identity import BudgetWindow, Member, Role
from schnell.accounts.keys import digest_key
from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.tables import invites, members, new_id, users
from schnell.database.tables import teams as team_rows
from schnell.errors import NotFoundError

LIFETIME: Final = timedelta(days=7)
_GONE: Final = "this invite was used, revoked, or has run out; ask who sent it for another"


@dataclass(frozen=True, slots=True)
class Invite:
    """A link for one person and one use. With `user_id` it lets a member choose how to sign in anew."""

    id: str
    team_id: str
    team_name: str
    user_id: str | None
    user_name: str
    role: Role
    credit_limit: int | None
    budget_window: BudgetWindow
    created_by: str
    created_by_id: str | None
    created_at: datetime
    expires_at: datetime
    accepted_at: datetime | None
    revoked_at: datetime | None

    @property
    def is_open(self) -> bool:
        """Whether it can still be used."""
        return self.accepted_at is None and self.revoked_at is None and self.expires_at > now()


@dataclass(frozen=True, slots=True)
class NewInvite:
    """An invite that was just made, with its `secret`, which is stored nowhere."""

    invite: Invite
    secret: str


async def make_invite(  # noqa: PLR0913 - one argument a column
    connection: Connection,
    actor: Actor,
    team_id: str,
    user_name: str,
    *,
    role: Role = "MEMBER",
    credit_limit: int | None = None,
    budget_window: BudgetWindow = "none",
    user_id: str | None = None,
    lifetime: timedelta = LIFETIME,
) -> NewInvite:
    """Invite somebody to a team, or, with `user_id`, let a member of it choose how they sign in.

    Raises:
        NotFoundError: there is no such team.
        InvalidFieldError: as `teams.add_member`.
    """
    if user_id is None:
        teams.check_user_name(user_name)
    team = await teams.find_team(connection, team_id)
    secret, moment = secrets.token_urlsafe(32), now()
    row: dict[str, Any] = {
        "id": new_id(),
        "team_id": team.id,
        "user_id": user_id,
        "user_name": user_name,
        "role": role,
        "credit_limit": credit_limit,
        "budget_window": budget_window,
        "created_by": actor.name[:200],
        "created_by_id": actor.user_id,
        "created_at": moment,
        "expires_at": moment + lifetime,
    }
    await connection.execute(invites.insert().values(row | {"digest": digest_key(secret)}))
    details = {"role": role, "expires_at": row["expires_at"].isoformat()} | ({"user_id": user_id} if user_id else {})
    await record(connection, actor, "invite.made", user_name, target_id=row["id"], team_id=team.id, details=details)
    return NewInvite(await find_invite(connection, row["id"]), secret)


async def list_invites(connection: Connection, team_id: str) -> list[Invite]:
    """A team's invites, the newest first."""
    query = _query().where(invites.c.team_id == team_id).order_by(invites.c.created_at.desc())
    return [_to_invite(row) for row in await connection.execute(query)]


async def find_invite(connection: Connection, invite_id: str) -> Invite:
    """The invite with this id.

    Raises:
        NotFoundError: there is none.
    """
    row = (await connection.execute(_query().where(invites.c.id == invite_id))).first()
    if row is None:
        raise NotFoundError(f"no invite has the id {invite_id!r}")
    return _to_invite(row)


async def read_invite(connection: Connection, secret: str) -> Invite:
    """The invite of a link that can still be used.

    Raises:
        NotFoundError: there is none; whether there ever was one is not told.
    """
    row = (await connection.execute(_query().where(invites.c.digest == digest_key(secret)))).first()
    if row is None or not _to_invite(row).is_open:
        raise NotFoundError(_GONE)
    return _to_invite(row)


async def accept_invite(connection: Connection, secret: str, user_name: str | None = None) -> Member:
    """Use an invite up, and give the member that it made, or was for. `user_name`: what the person calls themselves.

    Raises:
        NotFoundError: the invite cannot be used, or who has made it may not do so any more.
    """
    invite = await read_invite(connection, secret)
    await _check_maker(connection, invite)
    # of two browsers that accept at once, one changes the row
    unused = (invites.c.id == invite.id, invites.c.accepted_at.is_(None), invites.c.revoked_at.is_(None))
    taken = await connection.execute(update(invites).where(*unused).values(accepted_at=now()))
    if taken.rowcount != 1:
        raise NotFoundError(_GONE)
    if invite.user_id is not None:
        member = await teams.find_member(connection, invite.team_id, invite.user_id)
    else:
        member = await teams.add_member(
            connection,
            invite.team_id,
            user_name or invite.user_name,
            role=invite.role,
            credit_limit=invite.credit_limit,
            budget_window=invite.budget_window,
            created_by=invite.created_by,
        )
    actor = Actor(member.user_name, "session", member.user_id)
    details = {"made_by": invite.created_by, "role": member.role}
    ids = {"target_id": invite.id, "team_id": invite.team_id}
    await record(connection, actor, "invite.accepted", member.user_name, details=details, **ids)
    return member


async def revoke_invite(connection: Connection, actor: Actor, invite_id: str) -> Invite:
    """Make an invite useless. One that was used or revoked before stays as it is.

    Raises:
        NotFoundError: there is no such invite.
    """
    invite = await find_invite(connection, invite_id)
    if not invite.is_open:
        return invite
    await connection.execute(update(invites).where(invites.c.id == invite_id).values(revoked_at=now()))
    name, team_id = invite.user_name, invite.team_id
    await record(connection, actor, "invite.revoked", name, target_id=invite.id, team_id=team_id)
    return await find_invite(connection, invite_id)


async def revoke_invites(
    connection: Connection, actor: Actor, *, made_for: str | None = None, made_by: str | None = None
) -> None:
    """Revoke all open invites that let this user in again (`made_for`), or that this user has made (`made_by`)."""
    whose = invites.c.user_id == made_for if made_for is not None else invites.c.created_by_id == made_by
    open_ones = (invites.c.accepted_at.is_(None), invites.c.revoked_at.is_(None), invites.c.expires_at > now())
    for invite_id in list((await connection.execute(select(invites.c.id).where(whose, *open_ones))).scalars()):
        await revoke_invite(connection, actor, invite_id)


async def _check_maker(connection: Connection, invite: Invite) -> None:
    """Refuse a link whose maker could not make it now: a link must not keep what its maker has lost. NotFoundError.

    The command line, which has no user, may always.
    """
    if invite.created_by_id is None:
        return
    query = (
        select(members.c.team_id, members.c.role, users.c.operator)
        .join(users, users.c.id == members.c.user_id)
        .join(team_rows, team_rows.c.id == members.c.team_id)
        .where(members.c.user_id == invite.created_by_id, members.c.status == "ACTIVE", team_rows.c.status == "ACTIVE")
    )
    found = (await connection.execute(query)).all()
    if any(row.operator for row in found):
        return
    manages = any(row.team_id == invite.team_id and row.role == "ADMIN" for row in found)
    # as `administration.check_may_change`, which was asked when the link was made: its member may have risen since
    if not manages or (
        invite.user_id is not None and (await teams.find_member(connection, invite.team_id, invite.user_id)).operator
    ):
        raise NotFoundError(_GONE)


def _query() -> Select[Any]:
    return select(invites, team_rows.c.name.label("team_name")).join(team_rows, team_rows.c.id == invites.c.team_id)


def _to_invite(row: Row[Any]) -> Invite:
    return Invite(**{name: getattr(row, name) for name in Invite.__dataclass_fields__})
