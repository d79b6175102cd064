"""A team's own tokens for the sites that LoRAs come from: stored encrypted, never shown, never logged."""

import base64
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Final, Literal, get_args

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import ColumnElement, delete, select

from schnell.database.connection import Connection, upsert
from schnell.database.session import Database
from schnell.database.tables import source_tokens
from schnell.errors import FieldProblem, InvalidFieldError, NotFoundError

Site = Literal["huggingface", "civitai", "replicate"]
SITES: Final[tuple[Site, ...]] = get_args(Site)
_log = logging.getLogger(__name__)
_LONGEST: Final = 500
#: Called in the transaction of a change, to write down who made it: there is then no change without its line.
TokenNote = Callable[[Connection], Awaitable[None]]


class SourceTokens:
    """Tokens by team and site, encrypted with the operator's `secrets`.

    The first secret encrypts and each of them decrypts, so that a secret can be changed. Whoever reads the database
    alone, or a backup of it, has no token.
    """

    def __init__(self, database: Database, secrets: Sequence[str]) -> None:
        self._database = database
        self._cipher = MultiFernet([Fernet(_derive_key(secret)) for secret in secrets])

    async def keep(self, team_id: str, site: Site, token: str, moment: datetime, note: TokenNote | None = None) -> None:
        """Store a team's token for a site, given at `moment`, in place of the one before.

        Raises:
            InvalidFieldError: it is empty, too long, or not of printable ASCII without spaces.
        """
        token = token.strip()
        # it is sent in a header, in which a line break would begin another
        if not token.isascii() or not token.isprintable() or " " in token or not 1 <= len(token) <= _LONGEST:
            raise InvalidFieldError(FieldProblem("token", f"must be 1-{_LONGEST} ASCII characters without spaces"))
        values = {"team_id": team_id, "site": site, "created_at": moment}
        encrypted = self._cipher.encrypt(token.encode()).decode()
        async with self._database.write() as connection:
            await upsert(connection, source_tokens, values | {"token": encrypted})
            if note is not None:
                await note(connection)

    async def forget(self, team_id: str, site: Site, note: TokenNote | None = None) -> None:
        """Delete a team's token for a site. Raises NotFoundError where it has none."""
        async with self._database.write() as connection:
            gone = await connection.execute(delete(source_tokens).where(_whose(team_id, site)))
            if not gone.rowcount:
                raise NotFoundError(f"the team has no token for {site}")
            if note is not None:
                await note(connection)

    async def sites_of(self, team_id: str) -> set[str]:
        """The sites that a team has a token for."""
        query = select(source_tokens.c.site).where(source_tokens.c.team_id == team_id)
        async with self._database.read() as connection:
            return set((await connection.execute(query)).scalars())

    async def of_team(self, team_id: str) -> Mapping[str, str]:
        """A team's tokens by site, without those that no secret decrypts any more."""
        query = select(source_tokens).where(source_tokens.c.team_id == team_id)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        found = {row.site: self._decrypt(row.token) for row in rows}
        return {site: token for site, token in found.items() if token}

    def _decrypt(self, encrypted: str) -> str | None:
        try:
            return self._cipher.decrypt(encrypted.encode()).decode()
        except InvalidToken:
            # the team is served as one that has given no token: its private LoRAs are refused, and no others
            _log.warning("a team's token was encrypted with a secret that is gone; it must be given again")
            return None


def read_site(text: str) -> Site:
    """The site of this name. Raises NotFoundError where there is none."""
    for site in SITES:
        if site == text:
            return site
    raise NotFoundError(f"there is no site {text[:50]!r}; there are {', '.join(SITES)}")


def _whose(team_id: str, site: Site) -> ColumnElement[bool]:
    return (source_tokens.c.team_id == team_id) & (source_tokens.c.site == site)


def _derive_key(secret: str) -> bytes:
    # a key of its own: the same secrets sign links and sessions, whose signatures must say nothing of it. Fernet takes
    # 32 bytes as base64
    return base64.urlsafe_b64encode(hmac.new(secret.encode(), b"schnell source tokens", sha256).digest())
