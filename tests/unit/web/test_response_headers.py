import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import HTTPConnection

from schnell.web.response_headers import EXTRA_HEADERS, add_headers, header_text, rate_headers


@pytest.mark.parametrize(
    ("dialect", "headers"),
    [
        ("onemin", {"X-RateLimit-Limit": "60", "X-RateLimit-Remaining": "59", "X-RateLimit-Reset": "7"}),
        ("automatic1111", {"X-RateLimit-Limit": "60", "X-RateLimit-Remaining": "59", "X-RateLimit-Reset": "7"}),
        ("replicate", {"ratelimit-limit": "60", "ratelimit-remaining": "59", "ratelimit-reset": "7"}),
        (
            "openai",
            {
                "x-ratelimit-limit-requests": "60",
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "7s",
            },
        ),
    ],
)
def test_each_dialect_has_its_own_names_and_units(dialect: str, headers: dict[str, str]) -> None:
    assert rate_headers(dialect).write(60, 59, 7) == headers


def test_later_headers_are_added_to_earlier_ones() -> None:
    connection = HTTPConnection({"type": "http", "headers": []})
    add_headers(connection, {"a": "1", "b": "1"})
    add_headers(connection, {"b": "2"})
    assert connection.scope[EXTRA_HEADERS] == {"a": "1", "b": "2"}


@given(st.text())
def test_any_text_becomes_one_that_a_header_can_hold(text: str) -> None:
    shown = header_text(text)
    assert shown.isascii()
    assert len(shown) == len(text)
    assert all(now in {before, "?"} for before, now in zip(text, shown, strict=True))
