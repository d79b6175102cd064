import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.assets.store import KeyMint, check_key, extension_of, file_name, is_key, media_type_of
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


environments = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", min_size=1, max_size=64)


@given(environments, st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1)), st.sampled_from(["webp", "jpg", "png"]))  # noqa: DTZ001
def test_every_key_that_is_made_is_a_key_and_says_when_and_what(
    environment: str, moment: datetime, extension: str
) -> None:
    key = KeyMint(environment).make(moment, extension)
    assert is_key(key)
    assert file_name(key) == key.rpartition("/")[2]
    assert key.startswith(f"{environment}/images/{moment:%Y_%m_%d_%H_%M_%S}_")
    assert extension_of(media_type_of(key)) == extension


def test_a_count_that_has_reached_its_end_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schnell.assets.store.secrets.randbelow", lambda _: 999_998)
    mint = KeyMint("development")
    assert [mint.make(MOMENT, "png")[-10:] for _ in range(3)] == ["999999.png", "000000.png", "000001.png"]


@pytest.mark.parametrize(
    ("ending", "media_type"), [("jpg", "image/jpeg"), ("jpeg", "image/jpeg"), ("png", "image/png")]
)
def test_both_endings_of_a_jpeg_are_known(ending: str, media_type: str) -> None:
    assert media_type_of(f"development/images/2025_10_24_15_09_24_339_000001.{ending}") == media_type


@given(st.from_regex(r"[A-Za-z0-9_./-]{1,80}", fullmatch=True))
def test_a_key_stays_below_the_folder_it_is_put_under(text: str) -> None:
    if is_key(text):
        assert Path("/root", text).resolve().is_relative_to("/root")
        assert ".." not in text
