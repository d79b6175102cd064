"""What runs inside a transaction: the `Connection` that both databases offer, and `Prepared` statements for it.

A prepared statement is one that every request runs. On SQLite, SQLAlchemy's part in such a statement (looking up its
compiled form, binding values, wrapping rows) took some ten times as long as SQLite's own, so it is compiled once and
then handed to the driver. On PostgreSQL it runs through SQLAlchemy, as any other statement. See docs/decisions/0032.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import JSON, BindParameter, CursorResult, Dialect, Executable, Result, Row, Select, Table, bindparam
from sqlalchemy import Connection as SyncConnection
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import result_tuple
from sqlalchemy.exc import ArgumentError
from sqlalchemy.sql import visitors
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.types import TypeEngine

from schnell.database.inline_sqlite import InlineConnection

_Result = TypeVar("_Result")


class Connection(Protocol):
    """A transaction that statements run in: SQLAlchemy's `AsyncConnection` is one, and so is `InlineConnection`."""

    @property
    def dialect(self) -> Dialect:
        """SQLAlchemy's dialect, whose `name` is `sqlite` or `postgresql`."""
        ...

    async def execute(
        self, statement: Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        """Run a statement; with a list of parameters, once for each. Raises SQLAlchemyError."""
        ...

    async def run_sync(self, function: Callable[[SyncConnection], _Result], /) -> _Result:
        """Call a function with SQLAlchemy's synchronous connection, inside this transaction."""
        ...


async def upsert(connection: Connection, table: Table, values: Mapping[str, Any]) -> None:
    """Insert a row, or set the other columns of the row that has its primary key.

    One statement: of two servers that write the same row at once, both succeed, and the later one's values stay.
    """
    keys = [column.name for column in table.primary_key]
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table).values(values)
    others = {name: insert.excluded[name] for name in values if name not in keys}
    await connection.execute(
        insert.on_conflict_do_update(index_elements=keys, set_=others)
        if others
        else insert.on_conflict_do_nothing(index_elements=keys)
    )


@dataclass(frozen=True, slots=True)
class PreparedResult:
    """The rows that a prepared statement gave. `rowcount`: how many rows an INSERT, UPDATE or DELETE changed."""

    rows: Sequence[Row[Any]]
    rowcount: int

    @property
    def first(self) -> Row[Any] | None:
        """The first row, or None."""
        return self.rows[0] if self.rows else None


class Prepared:
    """A statement of SQLAlchemy's that is compiled once. Build it at module level; it holds no connection.

    Every run names one value for each `bindparam` and for each column of `sets`, no more and no fewer. `sets` are the
    columns that an INSERT or UPDATE sets to a value of the run, where the statement's own `values` do not say it. The
    result's columns are those of the SELECT, or of RETURNING.

    Raises:
        ArgumentError: the statement has an `IN` over a list, whose SQL differs with the list's length; or two columns
            of its result have one name.
    """

    def __init__(self, statement: Select[Any] | UpdateBase, *, sets: Iterable[str] = ()) -> None:
        self._statement = statement
        self._sets = tuple(sets)
        self._names = frozenset((*self._sets, *_bound_names(statement)))
        self._columns = _result_columns(statement)
        # compiled by the first run on SQLite: commands that never run it, and PostgreSQL, do not pay for it at import
        self._compiled: _SqliteStatement | None = None

    async def run(self, connection: Connection, values: Mapping[str, Any]) -> PreparedResult:
        """Run it in this transaction.

        Raises:
            ArgumentError: `values` has other names than the statement.
            DBAPIError: the database refuses it; on both databases of the class that `connection.execute` would raise.
        """
        # sqlite3 ignores names that a statement has not, and would lose a column without a word
        if values.keys() != self._names:
            raise ArgumentError(f"a prepared statement takes {sorted(self._names)}, not {sorted(values)}")
        if isinstance(connection, InlineConnection):
            if self._compiled is None:
                self._compiled = _compile(self._statement, self._sets, self._columns)
            return self._compiled.run(connection, values)
        result: Result[*tuple[Any, ...]] = await connection.execute(self._statement, values)
        if not isinstance(result, CursorResult):  # `ThreadedConnection` has fetched a SELECT's rows in its thread
            return PreparedResult(result.all(), -1)
        return PreparedResult(result.all() if result.returns_rows else (), result.rowcount)


class PreparedIn:
    """As `Prepared`, for a statement with an `IN` over a list of up to some hundred values, such as a page's ids.

    `build` gives the statement for so many values; it is compiled once for each length that comes.
    """

    def __init__(self, build: Callable[[Sequence[BindParameter[Any]]], Select[Any]]) -> None:
        self._build = build
        self._by_length: dict[int, Prepared] = {}

    async def run(
        self, connection: Connection, items: Sequence[Any], values: Mapping[str, Any] | None = None
    ) -> PreparedResult:
        """Run it for these values of the list, one at least, in this transaction. Raises as `Prepared.run`."""
        listed = {f"item_{place}": item for place, item in enumerate(items)}
        prepared = self._by_length.get(len(items))
        if prepared is None:
            prepared = self._by_length[len(items)] = Prepared(self._build([bindparam(name) for name in listed]))
        return await prepared.run(connection, {**listed, **(values or {})})


def _bound_names(statement: Select[Any] | UpdateBase) -> list[str]:
    binds = [each for each in visitors.iterate(statement) if isinstance(each, BindParameter)]
    if any(bind.expanding or bind.literal_execute for bind in binds):
        raise ArgumentError(
            "a prepared statement cannot have IN over a list, whose SQL changes with the list's length: "
            "run it with connection.execute"
        )
    # values that stand in the statement itself are binds, too, but not required ones
    return [bind.key for bind in binds if bind.required]


def _result_columns(statement: Select[Any] | UpdateBase) -> tuple[str, ...]:
    names = tuple(str(column.name) for column in statement.exported_columns)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArgumentError(f"two columns of a prepared statement's result are called {', '.join(twice)}: label one")
    return names


_Convert = Callable[[Any], Any]
# the same conversions as the engine's own dialect. The style makes SQL with `:name`, which a mapping can be bound to
_SQLITE: Final = sqlite.dialect(paramstyle="named")


@dataclass(frozen=True, slots=True)
class _SqliteStatement:
    """A statement in SQLite's SQL, with SQLAlchemy's conversions of the values and columns that need one."""

    sql: str
    constants: Mapping[str, Any]
    to_driver: tuple[tuple[str, _Convert], ...]
    row: Callable[[Sequence[Any]], Row[Any]]
    from_driver: tuple[tuple[int, _Convert], ...]

    def run(self, connection: InlineConnection, values: Mapping[str, Any]) -> PreparedResult:
        bound = {**self.constants, **values}
        for name, convert in self.to_driver:
            bound[name] = convert(bound[name])
        rows, rowcount = connection.run_driver_sql(self.sql, bound)
        return PreparedResult([self._convert(row) for row in rows], rowcount)

    def _convert(self, row: Sequence[Any]) -> Row[Any]:
        read = list(row)
        for place, convert in self.from_driver:
            read[place] = convert(read[place])
        return self.row(read)


def _compile(statement: Select[Any] | UpdateBase, sets: Sequence[str], columns: Sequence[str]) -> _SqliteStatement:
    # what follows leans on parts of SQLAlchemy that its manual does not promise: see its pin in pyproject.toml
    compiled = statement.compile(dialect=_SQLITE, column_keys=list(sets))
    assert isinstance(compiled, SQLCompiler)  # noqa: S101 - what compiling a statement gives
    binds = {name: compiled.binds[name] for name in compiled.params}
    to_driver = {name: convert for name, bind in binds.items() if (convert := _bind_processor(bind.type))}
    constants = {name: compiled.params[name] for name, bind in binds.items() if not bind.required}
    readers = [_result_processor(column.type) for column in statement.exported_columns]
    return _SqliteStatement(
        sql=compiled.string,
        # converted once, here
        constants={name: to_driver[name](value) if name in to_driver else value for name, value in constants.items()},
        to_driver=tuple((name, convert) for name, convert in to_driver.items() if name not in constants),
        row=result_tuple(columns),
        from_driver=tuple((place, convert) for place, convert in enumerate(readers) if convert),
    )


def _bind_processor(kind: TypeEngine[Any]) -> _Convert | None:
    return kind.dialect_impl(_SQLITE).bind_processor(_SQLITE)


def _result_processor(kind: TypeEngine[Any]) -> _Convert | None:
    if isinstance(kind, JSON):
        return _read_json
    return kind.dialect_impl(_SQLITE).result_processor(_SQLITE, None)


# without what `json.loads` does around it for every text, which for ours, of a hundred characters, takes longer
_decode_json: Final = json.JSONDecoder().raw_decode


def _read_json(value: Any) -> Any:
    # of SQLite's own accord, a column of this type keeps a number as one, and not as its text
    return _decode_json(value)[0] if isinstance(value, str) else value
