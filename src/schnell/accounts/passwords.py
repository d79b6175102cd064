"""Passwords: their hashes, the names that people sign in with, and why neither tells who has an account here."""

import asyncio
import secrets
import unicodedata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from schnell.accounts.identity import Member
from schnell.accounts.teams import find_member
from schnell.clock import now
from schnell.database.connection import Connection, upsert
from schnell.database.tables import logins, members, teams
from schnell.errors import ConflictError, FieldProblem, InvalidFieldError, RateLimitedError, UnauthorizedError

SHORTEST: Final = 12
LONGEST: Final = 256
_LONGEST_NAME: Final = 200
#: RFC 9106 names larger ones; these are OWASP's least for a server that has other work (Password Storage Cheat Sheet):
#: 19 MiB, two passes, one lane.
_KIBIBYTES: Final = 19 * 1024
_PASSES: Final = 2


@dataclass(frozen=True, slots=True)
class Login:
    """The name that a user signs in with, in its folded form, and the hash of their password."""

    user_id: str
    name: str
    password_hash: str


class PasswordHashes:
    """Makes and checks hashes (Argon2id), a few at a time: each takes 19 MiB of memory and a part of a second.

    At most `most_waiting` wait for their turn: who comes then is refused, so that a flood keeps nobody out for long.
    """

    def __init__(self, at_once: int = 2, most_waiting: int = 20) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._most = at_once + most_waiting
        self._under_way = 0
        self._nobodys: str | None = None

    async def make(self, password: str) -> str:
        """The hash of a password, with its salt and parameters, in the PHC string format.

        Raises:
            RateLimitedError: too many wait already.
        """
        async with self._turn():
            return await asyncio.to_thread(_hash, password)

    async def fits(self, password: str, login: Login | None) -> bool:
        """Whether the password is that login's. Where there is none, it takes as long to say no.

        Raises:
            RateLimitedError: too many wait already.
        """
        if self._nobodys is None:
            self._nobodys = await self.make(secrets.token_urlsafe())
        async with self._turn():
            return await asyncio.to_thread(_fits, password, login.password_hash if login else self._nobodys)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._under_way >= self._most:
            raise RateLimitedError("too many people sign in just now; try again in 2 s", self._most, 2)
        self._under_way += 1
        try:
            async with self._turns:
                yield
        finally:
            self._under_way -= 1


def fold_name(name: str) -> str:
    """The form in which names are compared: upper and lower case, and two ways to write an accent, are the same."""
    return unicodedata.normalize("NFKC", name.strip()).casefold()


def _check_name(name: str) -> None:
    # one character may become eighteen: what is compared has to fit where it is kept
    if len(fold_name(name)) > _LONGEST_NAME:
        raise InvalidFieldError(FieldProblem("name", f"must have at most {_LONGEST_NAME} characters, written plainly"))


def check_password(password: str, name: str) -> None:
    """Refuse a password that is quickly guessed, and a name that is too long.

    Length is what counts; no kinds of characters are asked for.

    Raises:
        InvalidFieldError: it is too short or too long, or the name itself.
    """
    _check_name(name)
    problem = None
    if not SHORTEST <= len(password) <= LONGEST:
        problem = f"must have {SHORTEST}-{LONGEST} characters; some words in a row are easy to remember"
    elif fold_name(name) in fold_name(password) and len(password) < len(name.strip()) + 8:
        problem = "must be more than the name that you sign in with"
    elif len(set(password)) < 5:
        problem = "must have at least five different characters"
    if problem:
        raise InvalidFieldError(FieldProblem("password", problem))


async def find_login(connection: Connection, name: str) -> Login | None:
    """The login of this name, however it is written; None without one."""
    row = (await connection.execute(select(logins).where(logins.c.name == fold_name(name)))).first()
    return Login(row.user_id, row.name, row.password_hash) if row else None


async def find_login_of(connection: Connection, user_id: str) -> Login | None:
    """A user's login; None where they have no password."""
    row = (await connection.execute(select(logins).where(logins.c.user_id == user_id))).first()
    return Login(row.user_id, row.name, row.password_hash) if row else None


async def has_logins(connection: Connection) -> bool:
    """Whether anybody here signs in with a password."""
    return (await connection.execute(select(logins.c.user_id).limit(1))).first() is not None


async def keep_login(connection: Connection, user_id: str, name: str, password_hash: str) -> None:
    """Let a user sign in with this name and password from now on, in place of what they had.

    Raises:
        ConflictError: somebody else signs in with this name. The transaction must be rolled back.
    """
    values = {"user_id": user_id, "name": fold_name(name), "password_hash": password_hash, "updated_at": now()}
    try:
        await upsert(connection, logins, values)
    except IntegrityError as cause:
        raise ConflictError("this name is taken: choose another one to sign in with") from cause


async def find_active_member(connection: Connection, user_id: str) -> Member:
    """The membership that a user signs in to: the first that is active, in a team that is.

    Raises:
        UnauthorizedError: there is none.
    """
    query = (
        select(members.c.team_id)
        .join(teams, teams.c.id == members.c.team_id)
        .where(members.c.user_id == user_id, members.c.status == "ACTIVE", teams.c.status == "ACTIVE")
        .order_by(members.c.created_at)
    )
    row = (await connection.execute(query)).first()
    if row is None:
        raise UnauthorizedError("This account is not active. Please contact your team administrator to be unblocked")
    return await find_member(connection, row.team_id, user_id)


def _hash(password: str) -> str:
    salt = secrets.token_bytes(16)
    kdf = Argon2id(salt=salt, length=32, iterations=_PASSES, lanes=1, memory_cost=_KIBIBYTES)
    return kdf.derive_phc_encoded(password.encode())


def _fits(password: str, password_hash: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(password.encode(), password_hash)
    except InvalidKey:
        return False
    return True
