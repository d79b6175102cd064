import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.web.dialects.huggingface import NotAcceptableError, choose_format


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "png"),
        (" , ", "png"),
        ("*/*", "png"),
        ("image/*", "png"),
        ("image/webp", "webp"),
        ("image/jpeg", "jpeg"),
        ("image/jpg", "jpeg"),
        ("IMAGE/WEBP", "webp"),
        ("text/html, image/webp", "webp"),
        ("image/webp, */*", "webp"),
        ("image/webp;q=0.5, image/jpeg", "jpeg"),
        ("image/webp; q=0.5, image/jpeg;q=0.4, image/png;q=0.1", "webp"),
        ("image/png;q=0, image/jpeg;q=0.1", "jpeg"),
        ("image/webp;q=high", "webp"),
        ("image/webp;level=1;q=0.2, image/*;q=0.3", "png"),
    ],
)
def test_the_format_with_the_highest_weight_is_chosen(accept: str, chosen: str) -> None:
    assert choose_format(accept) == chosen


@pytest.mark.parametrize("accept", ["image/bmp", "text/html", "image/png;q=0", "*/*;q=0", "image/webp;q=0, image/bmp"])
def test_a_client_that_takes_no_format_is_refused(accept: str) -> None:
    with pytest.raises(NotAcceptableError):
        choose_format(accept)


@given(st.text() | st.from_regex(r"(image/(png|webp|jpe?g|\*)(;q=[0-9.]{0,4})?,? ?){0,4}", fullmatch=True))
def test_any_header_is_answered_or_refused(accept: str) -> None:
    try:
        assert choose_format(accept) in {"png", "webp", "jpeg"}
    except NotAcceptableError:
        assert accept.strip(" ,")
