"""`schnell backup` and `schnell restore`: a whole installation in one folder, and back."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schnell.cli.database import DataDir
from schnell.cli.output import AsJson, print_json, progress_bars
from schnell.cli.people import here

if TYPE_CHECKING:
    from schnell.backup.folder import BackupPage
    from schnell.backup.making import Installation, ShowCount


def backup_command(
    path: Annotated[Path, typer.Argument(help="A new folder, or an earlier backup to bring up to date.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Copy the database, pictures, LoRAs and secrets to a folder, also while servers work.

    PostgreSQL is copied by pg_dump. The folder holds secrets: nobody else may read it.
    """
    from schnell.backup.making import make_backup
    from schnell.bootstrap import build_installation, check_data, read_settings

    settings = read_settings(data_dir=data_dir)
    check_data(settings)
    installation = build_installation(settings)
    page = _run(installation, lambda show: make_backup(installation, path, show))
    _tell(page, f"backed up to {path}", as_json=as_json)


def restore_command(
    path: Annotated[Path, typer.Argument(help="A folder that `schnell backup` has made.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Put a backup back into an empty data folder and database. Then start the server.

    Nothing that is there is replaced: the data folder, and a PostgreSQL database, must be new.
    """
    from schnell.backup.restoring import restore_backup
    from schnell.bootstrap import build_installation, hold_data, read_settings

    settings = read_settings(data_dir=data_dir)
    with hold_data(settings):
        installation = build_installation(settings, to_restore=True)
        page = _run(installation, lambda show: restore_backup(installation, path, show, here()))
    _tell(page, f"restored from {path}", as_json=as_json)


def _run(installation: "Installation", work: "Callable[[ShowCount], Awaitable[BackupPage]]") -> "BackupPage":
    async def run() -> "BackupPage":
        with progress_bars() as bars:
            try:
                return await work(lambda done, of: bars("pictures", done / of, f"{done} of {of}"))
            finally:
                await installation.store.close()

    return asyncio.run(run())


def _tell(page: "BackupPage", what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(page))
        return
    size = page.picture_bytes / 2**20
    typer.echo(f"{what}: the database of {page.made_at}, {page.pictures} pictures ({size:.1f} MiB), {page.loras} LoRAs")
    if page.missing:
        typer.echo(f"{page.missing} pictures were removed while the others were copied")
