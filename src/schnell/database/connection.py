"""What a transaction offers: SQLAlchemy's `AsyncConnection` does, and so does SQLite on the event loop's thread."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection as SyncConnection
from sqlalchemy import CursorResult, Dialect, Executable

_Result = TypeVar("_Result")


class Connection(Protocol):
    """A transaction that statements run in."""

    @property
    def dialect(self) -> Dialect:
        """Which database it is."""
        ...

    async def execute(
        self, statement: Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        """Run a statement; with a list of parameters, once for each."""
        ...

    async def run_sync(self, function: Callable[[SyncConnection], _Result], /) -> _Result:
        """Run a function that speaks to SQLAlchemy without `await`."""
        ...
