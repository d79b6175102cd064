"""Locks on files that end with the process that holds them, however it ends: how servers tell who is alive.

The kernel drops a `flock` when its process dies, so a killed server never leaves one behind, and a process id that is
used again means nothing to it. The file itself stays or goes without any effect on the lock.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

from schnell.errors import StartError

LockState = Literal["held", "free", "unknown"]
#: A lock file that nobody holds and that is older than this many seconds is not one that is just being made.
_STALE_SECONDS: Final = 3600


class FileLock:
    """An exclusive lock on a file that this process holds until `release`, or until it ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def release(self, *, remove: bool = False) -> None:
        """Let go of the lock. `remove` takes the file away, too: only for a path that no process locks again."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


def lock_file(path: Path) -> FileLock | None:
    """Lock a file, which is made if need be and names this process; None while another process holds the lock.

    Raises:
        StartError: the file cannot be written, or its file system knows no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as cause:
        raise StartError(f"the lock {path} cannot be written: {cause.strerror}") from cause
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder = f"{os.getpid()} {socket.gethostname()}\n".encode()
        # first the new text, then its end: whoever reads meanwhile never finds the file empty
        os.pwrite(descriptor, holder, 0)
        os.ftruncate(descriptor, len(holder))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as cause:
        os.close(descriptor)
        raise StartError(f"{path} cannot be locked: {cause.strerror}") from cause
    return FileLock(path, descriptor)


def describe_holder(path: Path) -> str:
    """Which process holds a lock, such as `process 1234 on web-1`, as far as its file tells."""
    with suppress(OSError, ValueError):
        number, host = path.read_text("utf-8").split()
        return f"process {int(number)} on {host}"
    return "another process"


def lock_state(path: Path) -> LockState:
    """Whether a process holds the lock of a file; `unknown` where there is no such file, or it cannot be asked."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return "unknown"
    try:
        # shared, so that two who ask at once do not take each other for the holder
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:
        return "unknown"
    finally:
        os.close(descriptor)
    return "free"


@contextmanager
def hold_files(paths: Sequence[Path]) -> Iterator[None]:
    """Hold the locks of all these files while the block runs.

    Raises:
        StartError: a server holds one of them; the message names its process and the folder.
    """
    with ExitStack() as held:
        for path in paths:
            lock = lock_file(path)
            if lock is None:
                raise StartError(
                    f"{path.parent} is in use: {describe_holder(path)} serves it. Stop that server first, "
                    "or choose another SCHNELL_DATA_DIR (and SCHNELL_DATABASE_URL)"
                )
            held.callback(lock.release)
        yield


class LockedFiles:
    """A folder with one locked file for each server that lives on a data folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: FileLock | None = None

    def claim(self, server_id: str) -> None:
        """Lock this server's file until `release`, or until the process ends. Raises StartError."""
        self._own = lock_file(self._path(server_id))

    def release(self) -> None:
        """Let go of this server's file and remove it."""
        if self._own is not None:
            self._own.release(remove=True)
            self._own = None

    def has_died(self, server_id: str) -> bool:
        """Whether a server's process is known to have ended: its file is here, and nobody holds its lock."""
        return lock_state(self._path(server_id)) == "free"

    def any_other(self) -> bool:
        """Whether another living server has its file here."""
        own = None if self._own is None else self._own.path
        return any(lock_state(path) == "held" for path in self._folder.glob("*.lock") if path != own)

    def remove(self, ended: Iterable[str]) -> None:
        """Remove the files of servers whose end is known, and stale ones that nobody asked for."""
        for server_id in ended:
            self._path(server_id).unlink(missing_ok=True)
        for path in find_old_files(self._folder, "*.lock", _STALE_SECONDS):
            if lock_state(path) == "free":
                path.unlink(missing_ok=True)

    def _path(self, server_id: str) -> Path:
        return self._folder / f"{server_id}.lock"


def find_old_files(folder: Path, pattern: str, seconds: float) -> list[Path]:
    """What matches the pattern and was last written more than so many seconds ago.

    What goes while the folder is read, because others tidy it or finish with a file at the same moment, is left out.
    """
    before, found = time.time() - seconds, []
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                found.append(path)
    return found
