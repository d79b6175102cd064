"""Putting a backup back into an empty installation, so that its next start goes on from the moment of the backup."""

import asyncio
from pathlib import Path

from sqlalchemy import delete, select, update

from schnell.accounts.audit import SERVER, Actor, record
from schnell.assets.store import is_key, media_type_of
from schnell.backup.databases import restore_database
from schnell.backup.folder import BackupFolder, BackupPage, copy_file, drafted
from schnell.backup.making import Installation, ShowCount, each_in_turn
from schnell.clock import now
from schnell.database.migration import knows_schema, migrate
from schnell.database.session import Database, parse_database_url
from schnell.database.tables import images, invites, servers, sessions
from schnell.errors import BackupError
from schnell.generations.records import forget_images


async def restore_backup(
    installation: Installation, source: Path, show: ShowCount = lambda _done, _of: None, actor: Actor = SERVER
) -> BackupPage:
    """Put the backup in the folder `source` into an installation that is empty and serves nobody.

    The restored audit log's newest line says that `actor` did.

    What was under way when the backup was made fails at the next start, and its credits are given back then.

    Raises:
        BackupError: there is no whole backup, or it does not fit what the settings name.
    """
    folder = BackupFolder(source)
    page = await asyncio.to_thread(folder.read_page)
    secrets = folder.secrets.read_text("utf-8").split()
    _check_fits(installation, page)
    check_secrets(installation, secrets, folder.secrets)
    try:
        # the database last: it is what tells a whole restore from one that broke off, which then may run again
        await _put_pictures(installation, folder, show)
        await _put_loras(installation, folder)
        await asyncio.to_thread(_put_secrets, installation, folder, secrets)
        await restore_database(installation.database_url, folder.database(page))
        await _settle(installation, folder, actor, page)
    except OSError as cause:
        raise BackupError(f"the backup cannot be put back: {cause.strerror} ({cause.filename})") from cause
    return page


def check_secrets(installation: Installation, secrets: list[str], file: Path) -> None:
    """Refuse an installation in which links of the backup would not open. Raises BackupError."""
    if installation.own_secret is not None:
        own = installation.own_secret
        if len(secrets) > 1:
            raise BackupError(f"set SCHNELL_LINK_SECRETS to the lines of {file}, separated by commas, as it was")
        if own.exists() and own.read_text().split() != secrets:
            raise BackupError(f"{own} is another installation's: restore into an empty SCHNELL_DATA_DIR")
    elif missing := [secret for secret in secrets if secret not in installation.secrets]:
        raise BackupError(
            f"SCHNELL_LINK_SECRETS lacks {len(missing)} of the {len(secrets)} lines of {file}: without them, links, "
            "teams' tokens and the key that signs pictures cannot be opened"
        )


def _check_fits(installation: Installation, page: BackupPage) -> None:
    dialect = parse_database_url(installation.database_url).get_backend_name()
    if dialect != page.dialect:
        raise BackupError(f"the backup is one of {page.dialect}, and SCHNELL_DATABASE_URL names {dialect}")
    if not knows_schema(page.schema):
        raise BackupError(f"the backup was made by schnell {page.version}, a later version than this one: install that")


async def _put_pictures(installation: Installation, folder: BackupFolder, show: ShowCount) -> None:
    keys = _list_keys(folder)
    done = 0

    async def put(key: str) -> None:
        nonlocal done
        data = await asyncio.to_thread((folder.pictures / key).read_bytes)
        await installation.store.put(key, data, media_type_of(key))
        done += 1
        show(done, len(keys))

    await each_in_turn(put, keys)


def _list_keys(folder: BackupFolder) -> list[str]:
    files = (file for file in folder.pictures.rglob("*") if file.is_file())
    names = (file.relative_to(folder.pictures).as_posix() for file in files)
    return sorted(name for name in names if is_key(name))


async def _put_loras(installation: Installation, folder: BackupFolder) -> None:
    for file in folder.loras.glob("*.safetensors"):
        await asyncio.to_thread(copy_file, file, installation.adapters / file.name)
        if installation.shares_loras:
            await installation.store.put_file(file.name, file)
    for file in folder.previews.glob("*.webp"):
        await asyncio.to_thread(copy_file, file, installation.previews / file.name)


def _put_secrets(installation: Installation, folder: BackupFolder, secrets: list[str]) -> None:
    if installation.own_secret is not None:
        _write_closed(installation.own_secret, secrets[0])
    if folder.signing_key.is_file():
        _write_closed(installation.signing_key, folder.signing_key.read_text("ascii"))


def _write_closed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with drafted(path) as draft:
        draft.touch(mode=0o600)
        draft.write_text(text, "ascii")


async def _settle(installation: Installation, folder: BackupFolder, actor: Actor, page: BackupPage) -> None:
    """Migrate, and take out of the database what is not there: removed pictures, servers, sessions and open invites."""
    kept = set(await asyncio.to_thread(_list_keys, folder))
    database = Database(installation.database_url)
    try:
        await migrate(database)
        async with database.write() as connection:
            stored = select(images.c.key).where(images.c.state == "STORED")
            gone = [key for key in (await connection.execute(stored)).scalars() if key not in kept]
            await forget_images(connection, gone)
            # or the next start would wait until their leases have run out before it fails what they were drawing
            await connection.execute(delete(servers))
            # cookies and links of its time may have been ended since; passwords and keys open as they did
            await connection.execute(delete(sessions))
            still_open = (invites.c.accepted_at.is_(None), invites.c.revoked_at.is_(None))
            await connection.execute(update(invites).where(*still_open).values(revoked_at=now()))
            details = {"of": page.made_at, "pictures": page.pictures}
            await record(connection, actor, "backup.restored", "this server", details=details)
    finally:
        await database.close()
