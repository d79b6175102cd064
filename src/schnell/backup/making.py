"""Making a backup of a running installation: the database first, then what it names."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from typing import Final, TypeVar

from schnell.assets.store import AssetStore
from schnell.backup.databases import Inventory, copy_database
from schnell.backup.folder import BackupFolder, BackupPage, copy_file, drafted
from schnell.clock import now
from schnell.database.session import parse_database_url
from schnell.errors import BackupError, NotFoundError

_Item = TypeVar("_Item")
#: Pictures that are read at once: enough to hide a bucket's delays, few enough to hold in memory.
_AT_ONCE: Final = 8
#: Called with how many pictures of how many are done.
ShowCount = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Installation:
    """What is backed up, and what is restored into.

    `adapters` is the folder of converted LoRAs, `previews` that of their pictures. `secrets` sign links (the first) and
    open them; `own_secret` is the file of the data folder that holds one, None where the operator's settings name them.
    `shares_loras` says that servers find each other's LoRAs in the store.
    """

    database_url: str
    store: AssetStore
    adapters: Path
    previews: Path
    secrets: tuple[str, ...]
    own_secret: Path | None
    signing_key: Path
    shares_loras: bool


async def make_backup(
    installation: Installation, target: Path, show: ShowCount = lambda _done, _of: None
) -> BackupPage:
    """Copy an installation to the folder `target`, while its servers work.

    A picture that a record of the copy names was stored before that record ended, so it is there to be copied, unless
    somebody removes it meanwhile: that is counted, and a restore forgets it. A folder that holds an earlier backup is
    brought up to date.

    Raises:
        BackupError: a part cannot be read or written; an earlier backup in the folder still counts.
    """
    folder = BackupFolder(target)
    folder.prepare()
    try:
        file = folder.new_database()
        found = await copy_database(installation.database_url, file)
        missing = await _copy_pictures(installation.store, found.pictures, folder.pictures, show)
        await _copy_loras(installation, found, folder)
        await asyncio.to_thread(_copy_secrets, installation, folder)
        page = await asyncio.to_thread(_describe, installation, file, found, missing)
        await asyncio.to_thread(folder.write_page, page)
        await asyncio.to_thread(_remove_unnamed, folder, found)
    except OSError as cause:
        raise BackupError(f"the backup cannot be written: {cause.strerror} ({cause.filename})") from cause
    return page


async def _copy_pictures(store: AssetStore, pictures: dict[str, int], folder: Path, show: ShowCount) -> int:
    """Copy pictures that are not there yet. Returns how many were removed from the store meanwhile."""
    missing = done = 0

    async def copy(key: str) -> None:
        nonlocal missing, done
        path = folder / key
        # what is stored under a key never changes
        if not (path.exists() and path.stat().st_size == pictures[key]):
            try:
                await asyncio.to_thread(_write, path, await store.get(key))
            except NotFoundError:
                missing += 1
        done += 1
        show(done, len(pictures))

    await each_in_turn(copy, pictures)
    return missing


async def each_in_turn(work: Callable[[_Item], Awaitable[None]], items: Iterable[_Item]) -> None:
    """Do something with every item, a few at a time. The first failure is raised."""
    left = iter(items)

    # workers that take the next item, not a task for each: there may be a million
    async def take() -> None:
        for item in left:
            await work(item)

    await asyncio.gather(*(take() for _ in range(_AT_ONCE)))


async def _copy_loras(installation: Installation, found: Inventory, folder: BackupFolder) -> None:
    for sha256 in sorted(found.lora_files):
        name = f"{sha256}.safetensors"
        source, target = installation.adapters / name, folder.loras / name
        if source.is_file():
            await asyncio.to_thread(copy_file, source, target)
        elif installation.shares_loras and not target.exists():
            # another server has added it, and this one has not drawn with it yet
            await installation.store.fetch_file(name, target)
    for lora_id in sorted(found.loras):
        source = installation.previews / f"{lora_id}.webp"
        if source.is_file():
            await asyncio.to_thread(copy_file, source, folder.previews / source.name)


def _copy_secrets(installation: Installation, folder: BackupFolder) -> None:
    folder.write_secret(folder.secrets, "\n".join(installation.secrets) + "\n")
    if installation.signing_key.is_file():
        folder.write_secret(folder.signing_key, installation.signing_key.read_text("ascii"))


def _describe(installation: Installation, file: Path, found: Inventory, missing: int) -> BackupPage:
    with file.open("rb") as opened:
        digest = file_digest(opened, "sha256").hexdigest()
    return BackupPage(
        made_at=now().isoformat(timespec="seconds"),
        version=version("schnell"),
        dialect=parse_database_url(installation.database_url).get_backend_name(),
        schema=found.schema,
        database=file.name,
        sha256=digest,
        pictures=len(found.pictures) - missing,
        picture_bytes=sum(found.pictures.values()),
        loras=len(found.lora_files),
        missing=missing,
    )


def _remove_unnamed(folder: BackupFolder, found: Inventory) -> None:
    """Remove what an earlier backup in the folder had, and this one has not."""
    for file in [*folder.pictures.rglob("*")]:
        if file.is_file() and file.relative_to(folder.pictures).as_posix() not in found.pictures:
            file.unlink()
    kept = {f"{sha256}.safetensors" for sha256 in found.lora_files} | {f"{lora_id}.webp" for lora_id in found.loras}
    for file in [*folder.loras.glob("*"), *folder.previews.glob("*")]:
        if file.name not in kept:
            file.unlink()


def _write(path: Path, data: bytes) -> None:
    with drafted(path) as draft:
        draft.write_bytes(data)
