"""Room on the disk for what is fetched: a budget of bytes for each team and for all, and what the disk itself has left.

Counted are the files that are being fetched or converted and those that broke off, which stay for a while to be
resumed. When room is short, those that nobody is fetching go first, the oldest of them before the others.
"""

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schnell.errors import DiskError, LoraDownloadError
from schnell.file_locks import find_old_files

#: What the disk keeps for the database and the pictures, whatever is fetched.
KEPT_FREE: Final = 256 * 2**20
#: How long a file that broke off waits to be asked for again.
PARTIAL_SECONDS: Final = 3600
#: What lies in the folder: the bytes so far, the ETag that they belong to, and whole files that are being converted.
_SUFFIXES: Final = frozenset({".part", ".note", ".done"})


@dataclass(frozen=True, slots=True)
class FetchBudget:
    """The most bytes of fetched files at a time, before they are converted: of all teams, and of one."""

    total: int = 12 * 2**30
    per_team: int = 5 * 2**30


@dataclass(slots=True)
class _File:
    team: str
    size: int
    touched: float
    in_use: bool


class DownloadRoom:
    """Counts the files of `folder` against a budget."""

    def __init__(self, folder: Path, budget: FetchBudget) -> None:
        self._folder = folder
        self.budget = budget
        self._files: dict[Path, _File] = {}

    def open(self, path: Path, team: str) -> None:
        """A team begins to fetch into this file, or goes on. What lies there already counts as the team's from now."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._count_what_is_left()
        size = path.stat().st_size if path.exists() else 0
        self._files[path] = _File(team, size, time.time(), in_use=True)

    def grow(self, path: Path, size: int) -> None:
        """The file will have this size.

        Raises:
            LoraDownloadError: it is more than the team, or all teams together, may have.
            DiskError: the disk has no room for it.
        """
        file = self._files[path]
        more = max(0, size - file.size)
        if more and not self._make_room(file.team, more):
            raise LoraDownloadError(
                f"the files that are being fetched may have {self.budget.per_team:,} bytes for a team and "
                f"{self.budget.total:,} in all, which this one of {size:,} bytes would pass; ask again later"
            )
        # twice: the converted file lies beside it for a moment
        if shutil.disk_usage(self._folder).free < 2 * more + KEPT_FREE:
            raise DiskError(f"this server's disk has no room for a file of {size:,} bytes")
        file.size = max(file.size, size)
        file.touched = time.time()

    def rename(self, path: Path, other: Path) -> None:
        """The file has got another name."""
        self._files[other] = self._files.pop(path)

    def close(self, path: Path) -> None:
        """Nobody fetches into this file now: it stays for a while if it is still here."""
        file = self._files.get(path)
        if file is None:
            return
        if path.exists():
            file.size, file.touched, file.in_use = path.stat().st_size, time.time(), False
        else:
            del self._files[path]

    def remove(self, path: Path) -> None:
        """Remove the file, and what belongs to it."""
        self._files.pop(path, None)
        path.unlink(missing_ok=True)
        path.with_suffix(".note").unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what has waited too long to be asked for again."""
        oldest = time.time() - PARTIAL_SECONDS
        for path in [*self._files]:
            file = self._files[path]
            if not file.in_use and file.touched < oldest:
                self.remove(path)
        # also what a process that was killed has left
        for path in find_old_files(self._folder, "*", PARTIAL_SECONDS):
            if path.suffix in _SUFFIXES and not self._is_in_use(path):
                path.unlink(missing_ok=True)

    @property
    def used(self) -> int:
        """The bytes that count, of all teams."""
        return sum(file.size for file in self._files.values())

    def _is_in_use(self, path: Path) -> bool:
        file = self._files.get(path.with_suffix(".part")) or self._files.get(path)
        return file is not None and file.in_use

    def _count_what_is_left(self) -> None:
        self.tidy()
        for path in self._folder.glob("*"):
            if path.suffix in {".part", ".done"} and path not in self._files:
                with suppress(FileNotFoundError):  # another server on this folder may remove it at this moment
                    found = path.stat()
                    self._files[path] = _File("", found.st_size, found.st_mtime, in_use=False)

    def _make_room(self, team: str, more: int) -> bool:
        while (own := self._used_by(team) + more > self.budget.per_team) or self.used + more > self.budget.total:
            idle = [(f.touched, p) for p, f in self._files.items() if not f.in_use and (f.team == team or not own)]
            if not idle:
                return False
            self.remove(min(idle)[1])
        return True

    def _used_by(self, team: str) -> int:
        return sum(file.size for file in self._files.values() if file.team == team)
