import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from schnell.errors import ClientGoneError, InvalidFieldError, MissingFieldError, UnreadableBodyError
from schnell.web.fields import Fields, read_json_object, whole_number

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def request_of(*messages: Message) -> Request:
    left = list(messages)

    async def receive() -> Message:
        return left.pop(0)

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


EXAMPLE = '{"prompt": …}'


def body_of(content: bytes) -> Request:
    return request_of({"type": "http.request", "body": content, "more_body": False})


def problems_of(fields: Fields) -> list[tuple[str, str]]:
    with pytest.raises(InvalidFieldError) as raised:
        fields.check()
    return [(each.field, each.message) for each in raised.value.problems]


@pytest.mark.parametrize(
    ("value", "whole"), [(4, 4), (4.0, 4), (-0.0, 0), (1.5, 1.5), ("4.0", "4.0"), (True, True), (None, None)]
)
def test_only_floats_without_a_fraction_become_whole(value: Any, whole: Any) -> None:
    assert whole_number(value) == whole
    assert type(whole_number(value)) is type(whole)


@pytest.mark.parametrize(
    ("read", "value", "found"),
    [
        (lambda f: f.text("x"), "a", "a"),
        (lambda f: f.choice("x", ("a", "b")), "b", "b"),
        (lambda f: f.whole("x", 0, 9), 4, 4),
        (lambda f: f.whole("x", 0, 9), 4.0, 4),
        (lambda f: f.whole("x", 0, 9), 0, 0),
        (lambda f: f.whole("x", 0, 9), 9, 9),
        (lambda f: f.number("x", 0, 9), 1.5, 1.5),
        (lambda f: f.flag("x", default=True), False, False),
        (lambda f: f.object("x"), {"a": 1}, {"a": 1}),
        (lambda f: f.raw("x"), [None], [None]),
    ],
)
def test_a_good_value_is_read(read: Any, value: Any, found: Any) -> None:
    fields = Fields({"x": value})
    assert read(fields) == found
    fields.check()


@pytest.mark.parametrize("values", [{}, {"x": None}])
def test_an_absent_field_and_null_are_the_same(values: dict[str, Any]) -> None:
    fields = Fields(values)
    read = (fields.text("x"), fields.choice("x", ("a",)), fields.whole("x", 0, 1), fields.object("x"), fields.raw("x"))
    assert read == (None,) * 5
    assert fields.flag("x", default=True)
    fields.check()


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (lambda f: f.text("x"), 7, "must be a string, got 7"),
        (
            lambda f: f.text("x"),
            "a\0",
            r"must not hold the character NUL (\u0000), which cannot be stored: leave it out",
        ),
        (lambda f: f.choice("x", ("a", "b")), "c", "must be one of a, b, got 'c'"),
        (lambda f: f.whole("x", 0, 9), 10, "must be 0-9, got 10"),
        (lambda f: f.whole("x", 0, 9), 1.5, "must be a whole number 0-9, got 1.5"),
        (lambda f: f.whole("x", 0, 9), True, "must be a whole number 0-9, got true"),
        (lambda f: f.whole("x", 0, 2**60), 2**53, f"must be a whole number 0-{2**60}, got {2**53}"),
        (lambda f: f.number("x", -1, 3), "1", 'must be a number -1 to 3, got "1"'),
        (lambda f: f.any_number("x", 1024), "1", 'must be a number, such as 1024, got "1"'),
        (lambda f: f.any_number("x", 1024), float("inf"), "must be a number, such as 1024, got Infinity"),
        (lambda f: f.any_whole("x", -1), 1.5, "must be a whole number, such as -1, got 1.5"),
        (lambda f: f.number("x", -1, 3), -1.001, "must be -1 to 3, got -1.001"),
        (lambda f: f.flag("x", default=False), 1, "must be true or false, got 1"),
        (lambda f: f.object("x"), [], "must be an object, got []"),
    ],
)
def test_a_wrong_value_is_none_and_reported_with_what_was_sent(read: Any, value: Any, message: str) -> None:
    fields = Fields({"x": value})
    assert not read(fields)
    assert problems_of(fields) == [("x", message)]


def test_all_wrong_fields_are_reported_in_the_order_they_were_read() -> None:
    fields = Fields({"a": 1, "b": "x", "c": "fine"})
    fields.text("a")
    fields.whole("b", 0, 1)
    fields.text("c")
    fields.refuse("d", "is not liked")
    assert [name for name, _ in problems_of(fields)] == ["a", "b", "d"]


def test_missing_fields_go_before_wrong_ones() -> None:
    fields = Fields({"a": 1})
    fields.text("a")
    fields.text("b", required=True)
    fields.object("c", required=True)
    fields.require("d", "is required with c")
    with pytest.raises(MissingFieldError) as raised:
        fields.check()
    problems = [(each.field, each.message) for each in raised.value.problems]
    assert problems == [("b", "is required"), ("c", "is required"), ("d", "is required with c")]


def test_a_long_value_is_shown_shortened() -> None:
    fields = Fields({"x": ["y" * 10_000]})
    fields.text("x")
    [(_, message)] = problems_of(fields)
    assert len(message) < 150
    assert message.endswith("…")


@given(JSON, st.integers(-10, 10), st.integers(-10, 10))
def test_a_number_that_is_read_lies_in_its_range(value: Any, low: int, high: int) -> None:
    fields = Fields({"x": value})
    whole, number = fields.whole("x", low, high), fields.number("x", low, high)
    assert whole is None or (isinstance(whole, int) and low <= whole <= high and whole == value)
    assert number is None or (low <= number <= high and number == value)


@given(JSON)
def test_every_value_is_read_or_reported(value: Any) -> None:
    for read in ("text", "object"):
        fields = Fields({"x": value})
        found = getattr(fields, read)("x")
        if found is None and value is not None:
            assert [name for name, _ in problems_of(fields)] == ["x"]
        else:
            assert found == value
            fields.check()


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
async def test_an_object_comes_back_as_it_was_sent(value: dict[str, Any]) -> None:
    assert await read_json_object(body_of(json.dumps(value).encode()), EXAMPLE) == value


@given(
    st.binary(max_size=60)
    | JSON.filter(lambda value: not isinstance(value, dict)).map(lambda v: json.dumps(v).encode())
)
async def test_what_is_no_object_is_unreadable_and_nothing_worse(content: bytes) -> None:
    try:
        found = await read_json_object(body_of(content), EXAMPLE)
    except UnreadableBodyError:
        return
    assert found == json.loads(content)


@pytest.mark.parametrize("content", [b'{"a": NaN}', b'{"a": Infinity}', b'{"a": "\xff"}', b"{" + b'"a":{' * 100_000])
async def test_what_python_reads_beyond_json_is_refused(content: bytes) -> None:
    with pytest.raises(UnreadableBodyError):
        await read_json_object(body_of(content), EXAMPLE)


async def test_who_sends_no_object_is_shown_what_the_path_takes() -> None:
    with pytest.raises(UnreadableBodyError, match=r'^the body must be a JSON object, such as \{"inputs": …\}$'):
        await read_json_object(body_of(b"[]"), '{"inputs": …}')


async def test_half_a_character_is_named() -> None:
    with pytest.raises(UnreadableBodyError, match=r"\\udc00, half of a character"):
        await read_json_object(body_of(b'{"a": "\\udc00"}'), EXAMPLE)


async def test_a_connection_that_closes_within_the_body_is_a_client_that_is_gone() -> None:
    begun: Message = {"type": "http.request", "body": b"{", "more_body": True}
    with pytest.raises(ClientGoneError):
        await read_json_object(request_of(begun, {"type": "http.disconnect"}), EXAMPLE)
