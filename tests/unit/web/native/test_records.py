from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.web.native.prompt_object import KNOWN_KEYS
from schnell.web.native.records import show_time


@pytest.mark.parametrize(
    ("moment", "shown"),
    [
        (None, None),
        (datetime(2025, 10, 24, 8, 9, 21, 920_000, tzinfo=UTC), "2025-10-24T08:09:21.920Z"),
        (datetime(2025, 1, 2, 3, 4, 5, 999, tzinfo=UTC), "2025-01-02T03:04:05.000Z"),
        (datetime(2025, 1, 2, 3, 4, 5, 999_999, tzinfo=UTC), "2025-01-02T03:04:05.999Z"),
    ],
)
def test_a_time_has_milliseconds_and_a_z(moment: datetime | None, shown: str | None) -> None:
    assert show_time(moment) == shown


@given(st.datetimes(min_value=datetime(2000, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - hypothesis adds the zone
def test_a_shown_time_reads_back_to_the_millisecond(moment: datetime) -> None:
    read = datetime.fromisoformat(str(show_time(moment)))
    assert read == moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def test_short_keys_are_echoed_first() -> None:
    assert list(KNOWN_KEYS) == sorted(KNOWN_KEYS, key=lambda name: (len(name), name))
    assert KNOWN_KEYS[:5] == ("n", "seed", "loras", "width", "height")
