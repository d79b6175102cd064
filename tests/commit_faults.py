"""Commits that fail or whose answer is lost, chosen by what their transaction does. On both databases."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from sqlalchemy.exc import OperationalError

from databases import postgres_socket
from gates import Fate, Gate, Link, gate_to, to_unix_socket
from schnell.database.inline_sqlite import InlineConnection

#: The four transactions of a generation.
Kind = Literal["accept", "started", "success", "failure"]
KINDS: tuple[Kind, ...] = ("accept", "started", "success", "failure")
#: Whether the transaction takes effect before the connection is lost.
When = Literal["before", "after"]
_MARKS: dict[str, Kind] = {"reserve": "accept", "settle": "success", "release": "failure", "PROCESSING": "started"}


@dataclass
class CommitFaults:
    """Loses the next commit of a kind, once `lose` is called."""

    url: str
    kind: Kind | None = None
    when: When = "before"
    lost: int = 0

    def lose(self, kind: Kind, when: When) -> None:
        self.kind, self.when = kind, when

    def hits(self, seen: set[str]) -> bool:
        """Whether this commit is the one."""
        kinds = {_MARKS[mark] for mark in seen}
        if len(kinds) > 1:
            kinds.discard("started")  # the statement that ends a record names PROCESSING too
        if self.kind is None or self.kind not in kinds:
            return False
        self.kind = None
        self.lost += 1
        return True


@contextmanager
def commit_faults(url: str, patch: pytest.MonkeyPatch) -> Iterator[CommitFaults]:
    if url.startswith("sqlite"):
        faults = CommitFaults(url)
        _watch_sqlite(faults, patch)
        yield faults
        return
    name = url.partition("?")[0].rpartition("/")[2]
    with gate_to(to_unix_socket(postgres_socket())) as gate:
        faults = CommitFaults(f"postgresql://postgres@127.0.0.1:{gate.port}/{name}?sslmode=disable")
        _watch_gate(faults, gate)
        yield faults


def _watch_gate(faults: CommitFaults, gate: Gate) -> None:
    def watch(link: Link, data: bytes) -> Fate:
        link.seen |= {mark for mark in _MARKS if mark.encode() in data}
        if b"COMMIT" not in data and b"ROLLBACK" not in data:
            return "pass"
        seen, link.seen = link.seen, set()
        if b"COMMIT" in data and faults.hits(seen):
            return "lost" if faults.when == "after" else "cut"
        return "pass"

    gate.watch = watch


def _watch_sqlite(faults: CommitFaults, patch: pytest.MonkeyPatch) -> None:
    begin, commit = InlineConnection.begin, InlineConnection.commit
    seen: dict[int, set[str]] = {}

    def begin_watched(self: InlineConnection, statement: str) -> None:
        begin(self, statement)
        marks: set[str] = set()
        seen[id(self)] = marks

        def note(traced: str) -> None:  # with its values
            marks.update(mark for mark in _MARKS if f"'{mark}'" in traced)

        self.driver.set_trace_callback(note if "IMMEDIATE" in statement else None)

    def commit_watched(self: InlineConnection) -> None:
        self.driver.set_trace_callback(None)
        if not faults.hits(seen.pop(id(self), set())):
            commit(self)
            return
        if faults.when == "after":
            commit(self)
        raise OperationalError("COMMIT", None, _disk_error())

    patch.setattr(InlineConnection, "begin", begin_watched)
    patch.setattr(InlineConnection, "commit", commit_watched)


def _disk_error() -> sqlite3.OperationalError:
    error: Any = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    return error  # type: ignore[no-any-return]
