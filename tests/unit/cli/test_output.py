import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from schnell.cli.output import print_fields, print_json, print_rows, progress_bars, say

MOMENT = datetime(2026, 1, 31, 12, 30, 15, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    words: tuple[str, ...]
    made: datetime
    limit: int | None = None


ROWS = [Row("a", ("neon", "glow"), MOMENT, 7), Row("longer", (), MOMENT)]


def test_json_has_times_in_iso_8601_and_letters_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"made": MOMENT, "path": Path("a/b"), "name": "café"})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"made": "2026-01-31T12:30:15+00:00", "path": "a/b", "name": "café"}
    assert "café" in printed


def test_rows_are_a_table_of_the_columns_named(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, ("name", "words", "made", "limit"), as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "name    words      made              limit",
        "a       neon,glow  2026-01-31 12:30  7",
        "longer             2026-01-31 12:30  -",
    ]


def test_rows_as_json_have_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, ("name",), as_json=True)
    first, second = json.loads(capsys.readouterr().out)
    assert first == {"name": "a", "words": ["neon", "glow"], "made": "2026-01-31T12:30:15+00:00", "limit": 7}
    assert second["limit"] is None


def test_no_rows_are_a_header_alone_or_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([], ("name", "limit"), as_json=False)
    print_rows([], ("name", "limit"), as_json=True)
    assert capsys.readouterr().out == "name  limit\n[]\n"


def test_fields_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"rank": 0, "words": ("a", "b"), "licence": None, "note": "", "none": ()})
    assert capsys.readouterr().out == "rank           0\nwords          a, b\n"


def test_messages_and_progress_leave_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as show:
        show("pictures", 0.25, "first")
        show("training", 0.5, "")
    say("done")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "pictures" in printed.err
    assert "training" in printed.err
    assert printed.err.endswith("done\n")
