import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.assets.store import KeyMint, check_key, is_key
from schnell.errors import NotFoundError

MOMENT = datetime(2025, 10, 24, 15, 9, 24, 339_000, UTC)


def test_a_key_has_the_documents_form() -> None:
    key = KeyMint("development").make(MOMENT, "webp")
    assert re.fullmatch(r"development/images/2025_10_24_15_09_24_339_[0-9]{6}\.webp", key)
    assert check_key(key) == key


def test_keys_of_one_moment_differ() -> None:
    mint = KeyMint("development")
    assert len({mint.make(MOMENT, "png") for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize(
    "text",
    [
        "../images/2025_10_24_15_09_24_339_000001.webp",
        "/etc/passwd",
        "development/images/2025_10_24_15_09_24_339_000001.webp/..",
        "development/images/2025_10_24_15_09_24_339_000001.exe",
        "development/images/2025_10_24_15_09_24_339_000001.webp\n",
        "",
    ],
)
def test_nothing_else_is_a_key(text: str) -> None:
    with pytest.raises(NotFoundError):
        check_key(text)


@given(st.text())
def test_a_text_with_dots_above_is_never_a_key(text: str) -> None:
    assert not is_key(f"../{text}")
    assert not is_key(f"{text}/../x")
