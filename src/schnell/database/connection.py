"""What a transaction offers: SQLAlchemy's `AsyncConnection` does, and so does SQLite on the event loop's thread."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import Connection as SyncConnection
from sqlalchemy import CursorResult, Dialect, Executable, Row, Select
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import result_tuple
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.types import TypeEngine

from schnell.database.inline_sqlite import InlineConnection

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


_Convert = Callable[[Any], Any]
_SQLITE: Final = sqlite.dialect(paramstyle="named")


@dataclass(frozen=True, slots=True)
class Done:
    """What a statement gave: its rows, and how many an update changed."""

    rows: Sequence[Row[Any]]
    changed: int

    @property
    def first(self) -> Row[Any] | None:
        """The first row, or None."""
        return self.rows[0] if self.rows else None


class Prepared:
    """One statement. Every run names the same values; for an insert or update they are also the columns to set."""

    def __init__(self, statement: Select[Any] | UpdateBase) -> None:
        self._statement = statement
        self._plan: _Plan | None = None

    async def run(self, connection: Connection, values: Mapping[str, Any]) -> Done:
        """Run it in this transaction."""
        if isinstance(connection, InlineConnection):
            if self._plan is None:
                self._plan = _compile(self._statement, list(values))
            return self._plan.run(connection, values)
        result = await connection.execute(self._statement, values)
        return Done(result.all() if result.returns_rows else (), result.rowcount)


@dataclass(frozen=True, slots=True)
class _Plan:
    sql: str
    constants: Mapping[str, Any]
    to_driver: tuple[tuple[str, _Convert], ...]
    row: Callable[[Sequence[Any]], Row[Any]]
    from_driver: tuple[tuple[int, _Convert], ...]

    def run(self, connection: InlineConnection, values: Mapping[str, Any]) -> Done:
        bound = {**self.constants, **values}
        for name, convert in self.to_driver:
            bound[name] = convert(bound[name])
        try:
            cursor = connection.driver.execute(self.sql, bound)
            found = cursor.fetchall()
        except sqlite3.Error as cause:
            raise DBAPIError(self.sql, None, cause) from cause
        return Done([self._convert(row) for row in found], cursor.rowcount)

    def _convert(self, row: Sequence[Any]) -> Row[Any]:
        read = list(row)
        for place, convert in self.from_driver:
            read[place] = convert(read[place])
        return self.row(read)


def _compile(statement: Select[Any] | UpdateBase, names: list[str]) -> _Plan:
    compiled = statement.compile(dialect=_SQLITE, column_keys=names)
    assert isinstance(compiled, SQLCompiler)  # noqa: S101 - what compiling a statement gives
    binds = {name: _to_driver(bind.type) for name, bind in compiled.binds.items()}
    constants = {name: value for name, value in compiled.params.items() if name not in names}
    columns = statement.exported_columns.items()
    readers = [column.type.dialect_impl(_SQLITE).result_processor(_SQLITE, None) for _, column in columns]
    fixed = {name: convert(value) if (convert := binds.get(name)) else value for name, value in constants.items()}
    return _Plan(
        sql=compiled.string,
        constants=fixed,
        to_driver=tuple((name, convert) for name, convert in binds.items() if convert and name in names),
        row=result_tuple([str(name) for name, _ in columns]),
        from_driver=tuple((place, convert) for place, convert in enumerate(readers) if convert),
    )


def _to_driver(kind: TypeEngine[Any]) -> _Convert | None:
    return kind.dialect_impl(_SQLITE).bind_processor(_SQLITE)
