from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.web.session import SessionSigner

KEY_ID = str(uuid4())
SIGNER = SessionSigner("secret")


@given(st.uuids(), st.integers(1, 10**12 - 1))
def test_a_cookie_gives_its_key_until_it_expires(key_id: object, expires: int) -> None:
    cookie = SIGNER.make(str(key_id), expires)
    session = SIGNER.read(cookie, expires - 0.5)
    assert session is not None
    assert (session.key_id, session.expires) == (str(key_id), expires)
    assert SIGNER.read(cookie, expires) is None


def test_another_secret_makes_and_opens_other_cookies() -> None:
    other = SessionSigner("other")
    assert other.read(SIGNER.make(KEY_ID, 100), 0) is None
    assert SIGNER.read(other.make(KEY_ID, 100), 0) is None


def test_the_cookie_holds_the_id_and_no_secret() -> None:
    key_id, expires, session, signature = SIGNER.make(KEY_ID, 100).split(".")
    assert SIGNER.make(KEY_ID, 100).split(".")[2] != session
    assert (key_id, expires) == (KEY_ID, "100")
    assert "secret" not in signature


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.replace(KEY_ID, str(uuid4())),
        lambda c: c.replace(".100.", ".999."),
        lambda c: c[:-1] + ("0" if c[-1] != "0" else "1"),
        lambda c: c.upper(),
        lambda c: c + " ",
        lambda c: c.rpartition(".")[0],
    ],
)
def test_a_changed_cookie_is_refused(change: object) -> None:
    cookie = SIGNER.make(KEY_ID, 100)
    assert callable(change)
    assert change(cookie) != cookie
    assert SIGNER.read(change(cookie), 0) is None


@given(st.text() | st.from_regex(r"[0-9a-f-]{36}\.[0-9]{1,12}\.[0-9a-f]{32}\.[0-9a-f]{64}", fullmatch=True))
def test_no_other_text_is_a_session(cookie: str) -> None:
    assert SIGNER.read(cookie, 0) is None
