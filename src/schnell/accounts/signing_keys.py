"""The key that signs pictures, in the database: the same for all servers that share it, encrypted as tokens are."""

import base64
import hmac
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import select, update

from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.migration import take_turn
from schnell.database.tables import signing_keys
from schnell.errors import CredentialsError
from schnell.provenance.keys import SigningKeys, read_keys

_CURRENT: Final = "current"


async def share_keys(connection: Connection, secrets: Sequence[str], offer: Callable[[], SigningKeys]) -> SigningKeys:
    """The keys in the database; without any, those that `offer` gives are put there.

    Servers that start at once take turns, so all of them get the keys of the first.

    Raises:
        CredentialsError: none of `secrets` decrypts what is there, or it cannot be read.
    """
    await take_turn(connection)
    sealed = (await connection.execute(select(signing_keys.c.sealed))).scalar()
    if sealed is not None:
        keys = _open(sealed, secrets)
        # sealed anew with the first secret: the others may be dropped later, as with links
        await connection.execute(update(signing_keys).values(sealed=_seal(keys, secrets)))
        return keys
    keys = offer()
    await connection.execute(signing_keys.insert().values(name=_CURRENT, sealed=_seal(keys, secrets), created_at=now()))
    return keys


async def find_shared_keys(connection: Connection, secrets: Sequence[str]) -> SigningKeys | None:
    """The keys in the database, None where no server has put any there. Raises CredentialsError."""
    sealed = (await connection.execute(select(signing_keys.c.sealed))).scalar()
    return None if sealed is None else _open(sealed, secrets)


async def replace_keys(connection: Connection, secrets: Sequence[str], keys: SigningKeys) -> None:
    """Put these keys into the database, whatever was there. Servers take them at their next start."""
    await take_turn(connection)
    values = {"sealed": _seal(keys, secrets), "created_at": now()}
    changed = await connection.execute(update(signing_keys).values(values))
    if not changed.rowcount:
        await connection.execute(signing_keys.insert().values(name=_CURRENT, **values))


def _seal(keys: SigningKeys, secrets: Sequence[str]) -> str:
    return _cipher(secrets).encrypt(keys.to_pem().encode()).decode()


def _open(sealed: str, secrets: Sequence[str]) -> SigningKeys:
    try:
        return read_keys(_cipher(secrets).decrypt(sealed.encode()).decode())
    except InvalidToken as cause:
        raise CredentialsError(
            "the signing key in the database was encrypted with a secret that this server does not have: give all "
            "servers the same SCHNELL_LINK_SECRETS (the older ones too), or import a key anew with "
            "`schnell credentials import`"
        ) from cause


def _cipher(secrets: Sequence[str]) -> MultiFernet:
    # keys of their own: the same secrets sign links and encrypt tokens, and one must tell nothing of another
    derived = (hmac.new(secret.encode(), b"schnell signing keys", sha256).digest() for secret in secrets)
    return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in derived])
