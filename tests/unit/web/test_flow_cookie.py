import pytest
from hypothesis import given
from hypothesis import strategies as st

from schnell.accounts.openid import Flow
from schnell.errors import SignInError
from schnell.web.flow_cookie import FlowCookies

FLOW = Flow("state", "nonce", "verifier", "/gallery", "invite")
COOKIES = FlowCookies(["secret"])


def test_a_browser_comes_back_with_what_it_went_with() -> None:
    sealed = COOKIES.seal(FLOW)
    assert COOKIES.open(sealed, "state") == FLOW
    # and nobody reads it meanwhile
    assert not any(part in sealed for part in ("verifier", "invite", "gallery"))


def test_servers_with_one_secret_finish_what_another_began_also_when_it_moves() -> None:
    newer = FlowCookies(["new", "secret"])
    assert newer.open(COOKIES.seal(FLOW), "state") == FLOW
    with pytest.raises(SignInError, match="not begun here"):
        COOKIES.open(newer.seal(FLOW), "state")


@given(st.text(max_size=60))
def test_another_state_is_refused(state: str) -> None:
    if state != FLOW.state:
        with pytest.raises(SignInError, match="not the answer"):
            COOKIES.open(COOKIES.seal(FLOW), state)


@given(st.text(max_size=200))
def test_no_other_text_is_a_flow(text: str) -> None:
    with pytest.raises(SignInError, match="not begun here"):
        COOKIES.open(text, "state")


def test_a_flow_lasts_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = COOKIES.seal(FLOW)
    import time

    later = time.time() + 601
    monkeypatch.setattr("cryptography.fernet.time.time", lambda: later)
    with pytest.raises(SignInError, match="ten minutes"):
        COOKIES.open(sealed, "state")
