"""A prepared statement does what `connection.execute` does with the same statement, on both databases."""

import asyncio
import sqlite3
import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from sqlalchemy import (
    JSON,
    BindParameter,
    Column,
    Integer,
    MetaData,
    Row,
    Table,
    bindparam,
    create_engine,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import result_tuple
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.sql import visitors

from counts import repeats
from schnell.accounts.keys import prepare_first_start
from schnell.database.connection import Prepared, PreparedIn
from schnell.database.session import Database
from schnell.database.tables import api_keys, images, metadata, records, teams, users

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
RECORD = {
    "id": "a",
    "team_id": "t",
    "user_id": "u",
    "instance": "main",
    "dialect": "onemin",
    "type": "IMAGE_GENERATOR",
    "model": "m",
    "status": "QUEUED",
    "prompt_object": {"prompt": "é"},
    "settings": {},
    "response_object": {},
    "receipts": [{"seed": 1}],
    "cost": 7,
    "metadata": None,
    "created_at": NOON,
}
USER = {"id": "u", "name": "Ann", "created_at": NOON}
ORPHAN = {
    "key": "k",
    "record_id": "none",
    "output": 0,
    "state": "STORED",
    "media_type": "image/webp",
    "bytes": 1,
    "created_at": NOON,
}
INSERT = Prepared(records.insert(), sets=RECORD)
FIND = Prepared(select(records).where(records.c.id == bindparam("wanted")))
START = Prepared(
    update(records).where(records.c.id == bindparam("of_record"), records.c.status == "QUEUED"),
    sets=("status", "started_at"),
)


async def test_values_come_back_as_they_went_in(database: Database) -> None:
    async with database.write() as connection:
        await INSERT.run(connection, RECORD)
    async with database.read() as connection:
        found = (await FIND.run(connection, {"wanted": "a"})).first
        plain = (await connection.execute(select(records))).one()
    assert found is not None
    assert found._fields == plain._fields
    assert tuple(found) == tuple(plain)
    assert (found.created_at, found.prompt_object, found.metadata, found.rating) == (NOON, {"prompt": "é"}, None, None)


moments = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(timezone(timedelta(hours=-7))))  # noqa: DTZ001 - Hypothesis adds the zone
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=repeats(200), deadline=None)
@given(moments, documents, st.text(), st.none() | st.integers(-(2**63), 2**63 - 1))
def test_sqlite_keeps_and_gives_what_sqlalchemy_would(
    moment: datetime, document: object, text: str, rating: int | None
) -> None:
    row = RECORD | {"created_at": moment, "settings": document, "feedback": text, "rating": rating}
    with TemporaryDirectory() as folder:
        found, plain, twin = asyncio.run(_keep_twice(Path(folder), row))
    assert tuple(found) == tuple(plain)
    assert found._mapping == plain._mapping
    assert tuple(found)[1:] == tuple(twin)[1:]
    assert (found.settings, found.feedback, found.rating) == (document, text, rating)


async def _keep_twice(folder: Path, row: Mapping[str, Any]) -> tuple[Row[Any], Row[Any], Row[Any]]:
    """A record written prepared and read both ways, and the same written without preparation."""
    database = Database(f"sqlite:{folder / 'rows.db'}")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
        await Prepared(records.insert(), sets=row).run(connection, row)
        await connection.execute(records.insert(), {**row, "id": "twin"})
        found = (await FIND.run(connection, {"wanted": "a"})).first
        plain, twin = (await connection.execute(select(records).order_by(records.c.id))).all()
    await database.close()
    assert found is not None
    return found, plain, twin


async def test_a_list_of_any_length_finds_what_in_finds(database: Database) -> None:
    found = PreparedIn(
        lambda ids: select(records.c.id).where(records.c.id.in_(ids), records.c.team_id == bindparam("team"))
    )
    names = [f"id {number}" for number in range(40)]
    async with database.write() as connection:
        for name in names[::2]:
            await INSERT.run(connection, RECORD | {"id": name})
        for length in (1, 2, 15, 16, 17, 40, 2, 1):
            wanted = names[-length:]
            plain = await connection.execute(select(records.c.id).where(records.c.id.in_(wanted)))
            rows = (await found.run(connection, wanted, {"team": "t"})).rows
            assert {row.id for row in rows} == set(plain.scalars()) == {name for name in wanted if name in names[::2]}
            assert not (await found.run(connection, wanted, {"team": "another"})).rows


async def test_a_statement_gives_the_rows_that_it_returns(database: Database) -> None:
    async with database.write() as connection:
        await prepare_first_start(connection, "a-key-for-testing")
        statement = update(teams).where(teams.c.credit_limit >= bindparam("least")).returning(teams.c.used_credit)
        spend = Prepared(statement.values(used_credit=teams.c.used_credit + 3))
        spent = await spend.run(connection, {"least": 1})
        assert ([row.used_credit for row in spent.rows], spent.rowcount) == ([3], 1)
        assert (await spend.run(connection, {"least": 10**12})).first is None


async def test_what_no_row_matches_changes_nothing(database: Database) -> None:
    async with database.write() as connection:
        await INSERT.run(connection, RECORD)
        values = {"of_record": "a", "status": "PROCESSING", "started_at": NOON}
        assert (await START.run(connection, values)).rowcount == 1
        assert (await START.run(connection, values)).rowcount == 0


async def test_a_block_that_raises_leaves_nothing_behind(database: Database) -> None:
    async def give_up() -> None:
        async with database.write() as connection:
            await INSERT.run(connection, RECORD)
            await connection.execute(select(records))  # SQLAlchemy has begun a transaction of its own
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await give_up()
    async with database.write() as connection:
        assert (await FIND.run(connection, {"wanted": "a"})).first is None


NOWHERE = Table("nowhere", MetaData(), Column("id", Integer))


@pytest.mark.parametrize(
    ("statement", "values", "on_sqlite", "on_postgresql"),
    [
        pytest.param(images.insert(), ORPHAN, IntegrityError, IntegrityError, id="foreign key"),
        pytest.param(users.insert(), USER, IntegrityError, IntegrityError, id="primary key"),
        pytest.param(users.insert(), {**USER, "id": "v", "name": None}, IntegrityError, IntegrityError, id="not null"),
        pytest.param(select(NOWHERE.c.id), {}, OperationalError, ProgrammingError, id="no such table"),
        pytest.param(  # SQLite keeps texts of any length
            users.insert(), {**USER, "id": "v" * 37, "name": None}, IntegrityError, DataError, id="too long and null"
        ),
        pytest.param(update(users), {"name": 7.5j}, ProgrammingError, ProgrammingError, id="no type of the database"),
    ],
)
async def test_what_the_database_refuses_is_the_error_that_execute_raises(
    database: Database,
    statement: Any,
    values: Mapping[str, Any],
    on_sqlite: type[DBAPIError],
    on_postgresql: type[DBAPIError],
) -> None:
    expected = on_sqlite if database.dialect == "sqlite" else on_postgresql
    async with database.write() as connection:
        await connection.execute(users.insert(), USER)
    with pytest.raises(expected) as plain:
        async with database.write() as connection:
            await connection.execute(statement, values)
    with pytest.raises(expected) as prepared:
        async with database.write() as connection:
            await Prepared(statement, sets=values).run(connection, values)
    assert type(prepared.value) is type(plain.value)
    assert type(prepared.value.orig) is type(plain.value.orig)
    assert str(prepared.value.orig) == str(plain.value.orig)
    async with database.write() as connection:  # both were rolled back, and the database goes on
        assert [row.name for row in (await Prepared(select(users)).run(connection, {})).rows] == ["Ann"]


async def test_an_error_on_sqlite_does_not_show_the_values(tmp_path: Path) -> None:
    database = Database(f"sqlite:{tmp_path / 'test.db'}")
    async with database.write() as connection:
        await connection.run_sync(metadata.create_all)
        with pytest.raises(IntegrityError) as refused:
            await Prepared(images.insert(), sets=ORPHAN).run(connection, {**ORPHAN, "state": "a secret"})
    await database.close()
    assert "a secret" not in str(refused.value)


@pytest.mark.parametrize(
    "values", [{}, {"of_record": "a"}, {"of_record": "a", "status": "x", "started_at": NOON, "cost": 1}]
)
async def test_a_run_with_other_names_than_the_statement_is_refused(database: Database, values: dict[str, Any]) -> None:
    async with database.write() as connection:
        with pytest.raises(ArgumentError, match=r"takes \['of_record', 'started_at', 'status'\], not"):
            await START.run(connection, values)


@pytest.mark.parametrize(
    "condition",
    [
        records.c.id.in_(["a", "b"]),
        records.c.id.not_in(["a"]),
        records.c.id.in_([]),
        records.c.id.in_(bindparam("ids", expanding=True)),
        (records.c.cost > 1) | records.c.id.in_(select(images.c.record_id).where(images.c.key.in_(["k"]))),
    ],
)
def test_in_over_a_list_is_refused_where_the_statement_is_built(condition: Any) -> None:
    for statement in (select(records).where(condition), update(records).where(condition)):
        with pytest.raises(ArgumentError, match="cannot have IN over a list, whose SQL changes with the list's length"):
            Prepared(statement)


async def test_in_over_a_select_is_no_list(database: Database) -> None:
    waiting = select(records.c.id).where(records.c.status == bindparam("status"))
    statement = Prepared(select(records.c.id, records.c.cost).where(records.c.id.in_(waiting)))
    async with database.write() as connection:
        await INSERT.run(connection, RECORD)
        found = await statement.run(connection, {"status": "QUEUED"})
        assert [row._asdict() for row in found.rows] == [{"id": "a", "cost": 7}]
        assert (await statement.run(connection, {"status": "SUCCESS"})).rows == []


def test_two_result_columns_of_one_name_are_refused_where_the_statement_is_built() -> None:
    both = select(api_keys.c.id, users.c.name, users.c.id).join_from(api_keys, users)
    with pytest.raises(ArgumentError, match="are called id: label one"):
        Prepared(both)
    Prepared(select(api_keys.c.id, users.c.id.label("user")).join_from(api_keys, users))


def _compiled(statement: Any) -> Any:
    return statement.compile(dialect=sqlite.dialect(paramstyle="named"), column_keys=["rating"])


def _binds(statement: Any) -> dict[str, Any]:
    return {each.key: each for each in visitors.iterate(statement) if isinstance(each, BindParameter)}


def _driver_of_a_connection() -> object:
    with create_engine("sqlite://").connect() as connection:
        return connection.connection.driver_connection


_PLAIN: Final = select(records).where(records.c.id == bindparam("wanted"), records.c.status == "QUEUED")
_JSON: Final[Any] = JSON().dialect_impl(sqlite.dialect())
_LEANED_ON: Final[dict[str, Callable[[], object]]] = {
    "engine.result_tuple makes rows of column names": lambda: result_tuple(["a", "b"])([1, 2]).b == 2,
    "SQLCompiler.string has `:name` for each value": lambda: (
        _compiled(update(records)).string == "UPDATE records SET rating=:rating"
    ),
    "SQLCompiler.params has the statement's own values by their names in the SQL": lambda: (
        _compiled(_PLAIN).params == {"wanted": None, "status_1": "QUEUED"}
    ),
    "SQLCompiler.binds has these names, with types": lambda: (
        {"wanted", "status_1"} <= _compiled(_PLAIN).binds.keys() and _compiled(_PLAIN).binds["wanted"].type is not None
    ),
    "BindParameter.required tells a run's values from the statement's own": lambda: (
        [bind.required for bind in _binds(_PLAIN).values()] == [True, False]
        and _compiled(update(records)).binds["rating"].required
    ),
    "BindParameter.expanding marks IN over a list": lambda: (
        [bind.expanding for bind in _binds(select(records).where(records.c.id.in_(["a"]))).values()] == [True]
    ),
    "BindParameter.literal_execute marks values that are written into the SQL": lambda: (
        [bind.literal_execute for bind in _binds(select(bindparam("x", literal_execute=True))).values()] == [True]
    ),
    "visitors.iterate finds the values of SET": lambda: "new" in _binds(update(records).values(cost=bindparam("new"))),
    "exported_columns are a SELECT's, or RETURNING's": lambda: (
        [column.name for column in insert(users).returning(users.c.name).exported_columns] == ["name"]
        and not list(insert(users).exported_columns)
        and [column.name for column in select(users.c.id).exported_columns] == ["id"]
    ),
    "dialect_impl gives a type's conversions both ways": lambda: (
        _JSON.result_processor(sqlite.dialect(), None)(_JSON.bind_processor(sqlite.dialect())({"a": [1]})) == {"a": [1]}
    ),
    "DBAPIError.instance chooses the class by the driver's error": lambda: (
        type(DBAPIError.instance("SQL", None, sqlite3.IntegrityError("x"), sqlite3.Error)) is IntegrityError
        and type(DBAPIError.instance("SQL", None, sqlite3.OperationalError("x"), sqlite3.Error)) is OperationalError
    ),
    "driver_connection is sqlite3's own connection": lambda: isinstance(_driver_of_a_connection(), sqlite3.Connection),
}


@pytest.mark.parametrize("claim", _LEANED_ON)
def test_sqlalchemy_still_has_what_prepared_statements_lean_on(claim: str) -> None:
    try:
        holds = _LEANED_ON[claim]()
    except Exception as error:  # noqa: BLE001 - whatever a changed library raises
        holds = False
        claim = f"{claim} ({type(error).__name__}: {error})"
    assert holds, (
        f"SQLAlchemy {sqlalchemy.__version__} has changed: it no longer holds that {claim}. `Prepared` in "
        "src/schnell/database/connection.py leans on it: change it there, or narrow the range in pyproject.toml"
    )


def test_sqlalchemy_is_a_version_that_prepared_statements_were_written_for() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    [wanted] = [each for each in map(Requirement, project["dependencies"]) if each.name == "sqlalchemy"]
    assert str(wanted.specifier) == "<2.2,>=2.1", "src/schnell/database/connection.py leans on internals of 2.1"
    assert sqlalchemy.__version__ in wanted.specifier, f"SQLAlchemy {sqlalchemy.__version__} is not {wanted.specifier}"
