from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.errors import (
    FieldProblem,
    InsufficientCreditsError,
    InvalidFieldError,
    NotFoundError,
    SchnellError,
    UnreadableBodyError,
)
from schnell.generations import Record
from schnell.web.dialects.model_list import REPLICATE_RATIOS
from schnell.web.dialects.replicate import ERRORS, describe_error
from schnell.web.dialects.replicate.reading import as_native, as_sent, read_lifetime, read_wait


def record_of(prompt_object: dict[str, Any], dialect: str = "replicate") -> Record:
    return Record(
        id="id",
        team_id="team",
        user_id="user",
        key_id="key",
        instance="main",
        dialect=dialect,
        type="IMAGE_GENERATOR",
        model="flux-schnell",
        status="QUEUED",
        prompt_object=prompt_object,
        settings={},
        cost=0,
        conversation_id=None,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        images=(),
    )


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("", 0),
        ("respond-async", 0),
        ("wait", 60),
        ("wait=5", 5),
        ("wait = 5", 5),
        ("wait=0", 0),
        ("wait=600", 60),
        ("respond-async, wait=7", 7),
        ("respond-async;wait", 60),
        ("await", 0),
        ("waiting", 0),
        ("wait=soon", 0),
    ],
)
def test_prefer_says_how_long_to_wait(prefer: str, seconds: int) -> None:
    assert read_wait(prefer) == seconds


@given(st.text() | st.from_regex(r"[a-z, ]{0,9}wait ?=? ?[0-9]{0,8}[a-z, ]{0,9}", fullmatch=True))
def test_no_prefer_waits_longer_than_a_minute(prefer: str) -> None:
    assert 0 <= read_wait(prefer) <= 60


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", None), ("  ", None), ("30s", 30), ("30", 30), ("5m", 300), ("1h", 3600), ("1h30m5s", 5405), (" 5s ", 5)],
)
def test_cancel_after_is_read_in_its_units(text: str, seconds: int | None) -> None:
    assert read_lifetime(text) == seconds


@pytest.mark.parametrize("text", ["soon", "4s", "0", "-30s", "1.5m", "30s1m", "5m5m", "s", "h", "1d"])
def test_a_lifetime_that_is_unreadable_or_too_short_is_refused(text: str) -> None:
    with pytest.raises(InvalidFieldError) as raised:
        read_lifetime(text)
    assert [each.field for each in raised.value.problems] == ["Cancel-After"]


@given(st.integers(0, 99), st.integers(0, 9999), st.integers(5, 99_999))
def test_hours_minutes_and_seconds_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert read_lifetime(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@given(st.sampled_from([*REPLICATE_RATIOS, "1:1", "16:9"]), st.sampled_from([None, "1", "0.25", 1, 0.25]))
def test_an_input_is_shown_as_it_was_sent(ratio: str, megapixels: object) -> None:
    sent = {"prompt": "x", "aspect_ratio": ratio} | ({} if megapixels is None else {"megapixels": megapixels})
    native = dict(as_native(sent))
    assert (native["aspect_ratio"] == "custom") == (ratio in REPLICATE_RATIOS)
    assert as_sent(record_of(native)) == sent


def test_a_custom_size_stays_custom() -> None:
    sent = {"prompt": "x", "aspect_ratio": "custom", "width": 320, "height": 640}
    assert as_native(sent) == sent
    assert as_sent(record_of(sent)) == sent


def test_another_dialects_size_is_not_given_a_name() -> None:
    native = dict(as_native({"prompt": "x", "aspect_ratio": "21:9"}))
    assert as_sent(record_of(native, "openai")) == native


@pytest.mark.parametrize("ratio", [["21:9"], {"a": 1}, 7, None, "7:7"])
def test_an_unknown_ratio_is_left_to_the_parser(ratio: object) -> None:
    assert as_native({"aspect_ratio": ratio}) == {"aspect_ratio": ratio}


@pytest.mark.parametrize(
    ("error", "status", "title"),
    [
        (NotFoundError("no"), 404, "Not found"),
        (InsufficientCreditsError("poor"), 402, "Insufficient credit"),
        (UnreadableBodyError("what?"), 422, "Input validation failed"),
    ],
)
def test_an_error_is_problem_details(error: SchnellError, status: int, title: str) -> None:
    assert ERRORS.status_of(error) == status
    assert describe_error(error, status) == {"title": title, "detail": error.message, "status": status}


def test_wrong_fields_are_listed_in_words_and_one_by_one() -> None:
    error = InvalidFieldError(FieldProblem("input.seed", "must be 0-9"), FieldProblem("input.prompt", "is odd"))
    body = describe_error(error, ERRORS.status_of(error))
    assert body["detail"] == "- input.seed: must be 0-9\n- input.prompt: is odd\n"
    assert body["invalid_fields"] == [
        {"type": "INVALID_FIELD", "field": "input.seed", "description": "must be 0-9"},
        {"type": "INVALID_FIELD", "field": "input.prompt", "description": "is odd"},
    ]
