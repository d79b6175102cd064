"""A backup as a folder: what lies where in it, and the page that says what it is.

`backup.json` names the copy of the database that counts. It is replaced in one step, after everything that the copy
names is there, so that a folder that is brought up to date and breaks off holds the earlier backup still.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

from schnell.errors import BackupError

#: Of the folder's form: a later one that is read otherwise gets another number.
_FORM: Final = 1
_PAGE: Final = "backup.json"


@dataclass(frozen=True, slots=True)
class BackupPage:
    """What a backup is: `database` is the name of the copy's file, `sha256` its digest, `dialect` what it is of.

    `schema` is the last migration that the database has had. `missing` are pictures that were removed while others were
    copied.
    """

    made_at: str
    version: str
    dialect: str
    schema: str
    database: str
    sha256: str
    pictures: int
    picture_bytes: int
    loras: int
    missing: int = 0
    form: int = _FORM


class BackupFolder:
    """The parts of a backup. Nobody but its owner may look into it: it holds the secrets that sign links."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pictures = root / "pictures"
        self.loras = root / "loras"
        self.previews = root / "previews"
        self.secrets = root / "link-secrets"
        self.signing_key = root / "keys.pem"

    def prepare(self) -> None:
        """Make the folder, or accept one that holds a backup.

        Raises:
            BackupError: it holds something else, or cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            if any(self.root.iterdir()) and not self._page.exists():
                raise BackupError(
                    f"{self.root} holds something that is no backup: name a new folder, or an earlier backup"
                )
            self.root.chmod(0o700)
        except OSError as cause:
            raise BackupError(f"{self.root} cannot be written: {cause.strerror}") from cause

    def read_page(self) -> BackupPage:
        """What this backup is.

        Raises:
            BackupError: there is none, it was made by a later version, or the copy of the database is damaged.
        """
        try:
            fields: dict[str, Any] = json.loads(self._page.read_text("utf-8"))
            if fields.get("form") != _FORM:
                raise BackupError(
                    f"{self.root} was made by schnell {fields.get('version')}, which this version cannot read"
                )
            page = BackupPage(**fields)
            with self.database(page).open("rb") as file:
                digest = file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as cause:
            raise BackupError(f"{self.root} holds no backup: {Path(cause.filename).name} is missing") from cause
        except (OSError, ValueError, TypeError, AttributeError) as cause:
            raise BackupError(f"{self._page} cannot be read: {cause}") from cause
        if digest != page.sha256:
            raise BackupError(f"{self.database(page)} is damaged: it is not the file that was written")
        return page

    def write_page(self, page: BackupPage) -> None:
        """Make `page` what counts, and remove copies of the database that no longer do. Raises OSError."""
        draft = self._page.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(page), indent=2) + "\n", "utf-8")
        _to_disk(self.database(page), draft)
        draft.replace(self._page)
        for old in self.root.glob("database-*"):
            if old.name != page.database:
                old.unlink()

    def new_database(self) -> Path:
        """An empty file for a copy of the database, for its owner's eyes only."""
        path = self.root / f"database-{token_hex(4)}"
        path.touch(mode=0o600)
        return path

    def database(self, page: BackupPage) -> Path:
        """The copy of the database."""
        return self.root / Path(page.database).name

    def write_secret(self, path: Path, text: str) -> None:
        """Write one of the secret files, closed to others before anything is in it."""
        with drafted(path) as draft:
            draft.touch(mode=0o600)
            draft.write_text(text, "utf-8")

    @property
    def _page(self) -> Path:
        return self.root / _PAGE


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; when the block ends well, the file takes its place, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all; one that is there with the same size is left: content has its own name."""
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    with drafted(target) as draft:
        shutil.copyfile(source, draft)


def _to_disk(*paths: Path) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
