"""What pictures carry as proof of their origin, out of settings: the mark, and the key that signs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schnell.provenance.credentials import CredentialsSigner
    from schnell.provenance.keys import SigningKeys
    from schnell.provenance.proof import Proof
    from schnell.settings import Settings


def build_proof(settings: "Settings") -> "Proof":
    """The proof that `schnell generate` gives: with the key in the data folder, which is made if need be.

    Raises:
        CredentialsError: the key or its certificates cannot be used.
    """
    from schnell.clock import now
    from schnell.provenance.key_files import load_or_make_keys
    from schnell.provenance.proof import Proof

    if not settings.credentials:
        return Proof(settings.watermark)
    keys = load_or_make_keys(settings.data_dir, settings.credentials_name, now())
    return Proof(settings.watermark, build_signer(settings, keys))


def build_shared_proof(settings: "Settings") -> "Proof":
    """The proof that a server gives: with the key of its database, which the first server on it puts there.

    Raises:
        CredentialsError: the key or its certificates cannot be used.
    """
    import asyncio

    from schnell.provenance.key_files import find_keys, keep_keys
    from schnell.provenance.proof import Proof

    if not settings.credentials:
        return Proof(settings.watermark)
    keys = asyncio.run(read_shared_keys(settings))
    known = find_keys(settings.data_dir)
    # the folder's copy is what `schnell generate` signs with, and what the web application shows as this server's
    if known is None or known.to_pem() != keys.to_pem():
        keep_keys(settings.data_dir, keys)
    return Proof(settings.watermark, build_signer(settings, keys))


def build_signer(settings: "Settings", keys: "SigningKeys") -> "CredentialsSigner":
    """A signer with these keys, which are tried on a picture.

    Raises:
        CredentialsError: the key or its certificates cannot be used.
    """
    from schnell.provenance.credentials import CredentialsSigner

    service, url, token = None, settings.credentials_signing_url, settings.credentials_signing_token
    if url:
        from schnell.provenance.signing_service import SigningService

        service = SigningService(url, token.get_secret_value() if token else None)
    return CredentialsSigner.checked(
        keys,
        with_prompt=settings.credentials_prompt,
        with_time=settings.credentials_time,
        time_stamp_url=settings.credentials_time_stamps,
        service=service,
    )


async def read_shared_keys(settings: "Settings") -> "SigningKeys":
    """The keys of the database; without any, those of the data folder are put there, made if need be.

    Raises:
        CredentialsError: they cannot be read.
    """
    from schnell.accounts.signing_keys import share_keys
    from schnell.bootstrap.data import build_database, read_secrets
    from schnell.clock import now
    from schnell.database.migration import migrate
    from schnell.provenance.key_files import load_or_make_keys

    database = build_database(settings)
    try:
        await migrate(database)
        async with database.migrate() as connection:
            return await share_keys(
                connection,
                read_secrets(settings),
                lambda: load_or_make_keys(settings.data_dir, settings.credentials_name, now()),
            )
    finally:
        await database.close()
