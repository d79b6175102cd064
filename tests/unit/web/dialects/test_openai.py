import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from schnell.errors import (
    FieldProblem,
    InsufficientCreditsError,
    InvalidFieldError,
    NotFoundError,
    SchnellError,
    ServerBusyError,
)
from schnell.web.dialects import openai
from schnell.web.fields import Fields


@pytest.mark.parametrize(
    ("steps", "count", "chosen"),
    [(4, 3, {1, 2, 3}), (4, 1, {2}), (4, 2, {1, 3}), (2, 1, {1}), (1, 3, set()), (4, 0, set())],
)
def test_partial_pictures_are_spread_over_the_steps(steps: int, count: int, chosen: set[int]) -> None:
    assert openai.choose_preview_steps(steps, count) == chosen


@given(st.integers(1, 4), st.integers(0, 3))
def test_the_last_step_is_never_a_partial_picture(steps: int, count: int) -> None:
    assert openai.choose_preview_steps(steps, count) <= set(range(1, steps))


def fields_of(size: object) -> Fields:
    return Fields({"size": size})


@pytest.mark.parametrize(
    ("size", "native"),
    [
        (None, {}),
        ("", {}),
        ("auto", {}),
        ("1024x1024", {"aspect_ratio": "custom", "width": 1024, "height": 1024}),
        ("256x1440", {"aspect_ratio": "custom", "width": 256, "height": 1440}),
        ("1792x1024", {"aspect_ratio": "16:9", "megapixels": "1"}),
        ("1024x1536", {"aspect_ratio": "2:3", "megapixels": "1"}),
    ],
)
def test_a_size_becomes_native_fields(size: object, native: dict[str, object]) -> None:
    fields = fields_of(size)
    assert openai.read_size(fields) == native
    fields.check()


@given(st.integers(0, 99_999), st.integers(0, 99_999))
def test_any_width_and_height_are_read_as_they_are_written(width: int, height: int) -> None:
    text = f"{width}x{height}"
    assume(text not in {"1536x1024", "1024x1536", "1792x1024", "1024x1792"})
    assert openai.read_size(fields_of(text)) == {"aspect_ratio": "custom", "width": width, "height": height}


@pytest.mark.parametrize(
    "size", ["huge", "1024", "1024*1024", "1024x", "x", "-1x5", "1 x 1", "100000x1", "AUTO", 7, []]
)
def test_a_size_that_cannot_be_read_is_refused_by_its_name(size: object) -> None:
    fields = fields_of(size)
    assert openai.read_size(fields) == {}
    with pytest.raises(InvalidFieldError) as raised:
        fields.check()
    assert {each.field for each in raised.value.problems} == {"size"}


@pytest.mark.parametrize(
    ("error", "status", "described"),
    [
        (NotFoundError("no"), 404, {"type": "invalid_request_error", "param": None, "code": "not_found"}),
        (
            InsufficientCreditsError("poor"),
            429,
            {"type": "insufficient_quota", "param": None, "code": "insufficient_quota"},
        ),
        (ServerBusyError("full"), 503, {"type": "server_error", "param": None, "code": "queue_full"}),
        (
            InvalidFieldError(FieldProblem("n", "must be 1-4"), FieldProblem("size", "is odd")),
            400,
            {"type": "invalid_request_error", "param": "n", "code": "invalid_value"},
        ),
    ],
)
def test_an_error_has_openais_type_code_and_first_field(
    error: SchnellError, status: int, described: dict[str, object]
) -> None:
    assert openai.describe_error(error, status) == {"error": {"message": error.message} | described}
    assert openai.ERRORS.status_of(error) == status
