"""Who somebody from an OpenID provider is here: the same member as last time, an invited one, or a new one."""

from sqlalchemy import select

from schnell.accounts import teams
from schnell.accounts.administration import add_member, change_member, is_last_operator
from schnell.accounts.audit import Actor
from schnell.accounts.identity import Member
from schnell.accounts.invites import accept_invite
from schnell.accounts.openid import Identity, OpenIdConfig
from schnell.accounts.passwords import find_active_member
from schnell.clock import now
from schnell.database.connection import Connection, upsert
from schnell.database.tables import identities
from schnell.errors import ConflictError, ForbiddenError


async def admit(connection: Connection, who: Identity, config: OpenIdConfig, invite: str | None = None) -> Member:
    """The member that an identity signs in as, with the role that the provider's claim gives them now.

    Nobody is found by their e-mail address: whoever controls it at the provider would get an account that is another's.

    Raises:
        ForbiddenError: they are new here, and there is neither an invite nor a team for newcomers.
        NotFoundError: the invite cannot be used.
        ConflictError: the invite is for somebody else than the member that this identity is.
        UnauthorizedError: the member, or their team, is not active.
    """
    actor = Actor(config.name, "server")
    known = await _find(connection, who)
    if known is not None and invite is not None:
        raise ConflictError(f"you are a member here already: sign in with {config.name}, without the invite")
    member = await _member_of(connection, actor, who, config, known, invite)
    return await _follow_role(connection, actor, member, who.rank)


async def _member_of(  # noqa: PLR0913, PLR0917 - what decides who somebody is
    connection: Connection, actor: Actor, who: Identity, config: OpenIdConfig, known: str | None, invite: str | None
) -> Member:
    if known is not None:
        return await find_active_member(connection, known)
    if invite is not None:
        member = await accept_invite(connection, invite, who.name)
    elif config.team is not None:
        team = await teams.find_team(connection, config.team)
        member = await add_member(connection, actor, team.id, who.name)
    else:
        raise ForbiddenError(
            f"{who.email or who.name} is not known here yet: ask an administrator of this server for an invite"
        )
    row = {"issuer": who.issuer, "subject": who.subject, "user_id": member.user_id}
    await upsert(connection, identities, row | {"email": who.email, "created_at": now()})
    return await find_active_member(connection, member.user_id)


async def _follow_role(connection: Connection, actor: Actor, member: Member, rank: str | None) -> Member:
    if rank is None:
        return member
    operator = rank == "OPERATOR"
    if member.operator and not operator and await is_last_operator(connection, member):
        # the provider must not be able to leave a server that nobody manages
        operator = True
    role = "MEMBER" if rank == "MEMBER" else "ADMIN"
    if (member.role, member.operator) == (role, operator):
        return member
    return await change_member(connection, actor, member.team_id, member.user_id, operator=operator, role=role)


async def _find(connection: Connection, who: Identity) -> str | None:
    same = (identities.c.issuer == who.issuer, identities.c.subject == who.subject)
    return (await connection.execute(select(identities.c.user_id).where(*same))).scalar()
