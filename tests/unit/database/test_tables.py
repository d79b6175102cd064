from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Dialect, select
from sqlalchemy.dialects import postgresql, sqlite

from schnell.database.session import Database
from schnell.database.tables import Timestamp, new_id, users

zones = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def test_ids_are_random_uuids_of_36_characters() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {(len(each), UUID(each).version) for each in ids} == {(36, 4)}


@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=zones))  # noqa: DTZ001 - Hypothesis adds the zone
def test_a_timestamp_is_the_same_moment_in_every_zone_and_database(moment: datetime) -> None:
    dialects: list[Dialect] = [sqlite.dialect(), postgresql.dialect()]  # type: ignore[no-untyped-call]
    for dialect in dialects:
        stored = Timestamp().process_bind_param(moment, dialect)
        assert stored == moment
        assert stored is not None
        assert stored.tzinfo is UTC
        # SQLite gives it back without its zone
        assert Timestamp().process_result_value(stored.replace(tzinfo=None), dialect) == moment
        assert Timestamp().process_result_value(stored, dialect) == moment


@given(st.none() | st.datetimes(datetime(1000, 1, 1), datetime(9998, 1, 1), timezones=zones))  # noqa: DTZ001 - as above
def test_sqlite_holds_the_text_that_sqlalchemy_writes_for_a_moment(moment: datetime | None) -> None:
    dialect: Dialect = sqlite.dialect()
    theirs, ours = sqlite.DATETIME(), Timestamp()  # type: ignore[no-untyped-call]
    write, read = ours.bind_processor(dialect), ours.result_processor(dialect, None)
    assert write is not None
    assert read is not None
    text = write(moment)
    assert text == theirs.bind_processor(dialect)(ours.process_bind_param(moment, dialect))  # type: ignore[misc]
    assert read(text) == moment


async def test_a_moment_comes_back_from_the_database_aware_and_to_the_microsecond(database: Database) -> None:
    moment = datetime(2026, 3, 29, 1, 59, 59, 123_456, timezone(timedelta(hours=2)))
    async with database.write() as connection:
        await connection.execute(users.insert().values(id="u", name="Ann", created_at=moment))
        found = (await connection.execute(select(users.c.created_at))).scalar_one()
    assert found == moment
    assert found.tzinfo is not None


def test_no_moment_stays_none() -> None:
    assert Timestamp().process_bind_param(None, sqlite.dialect()) is None
    assert Timestamp().process_result_value(None, sqlite.dialect()) is None
