import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from schnell.web.auth import key_in

KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)


def request_with(**headers: str) -> Request:
    sent = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "headers": sent})


def basic(credentials: str) -> str:
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


@given(KEYS)
def test_a_key_is_found_in_every_form(key: str) -> None:
    forms = [
        {"api_key": key},
        {"x_key": key},
        {"x_api_key": f" {key} "},
        {"authorization": f"Bearer {key}"},
        {"authorization": f"token {key}"},
        {"authorization": f"Key  {key}"},
        {"authorization": basic(f"someone:{key}")},
        {"authorization": basic(f":{key}")},
    ]
    assert [key_in(request_with(**form)) for form in forms] == [key] * len(forms)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"api_key": ""},
        {"api_key": "  "},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "secret"},
        {"authorization": "Digest secret"},
        {"authorization": "Basic !"},
        {"authorization": "Basic /w=="},
        {"authorization": basic(":")},
    ],
)
def test_without_a_key_there_is_none(headers: dict[str, str]) -> None:
    assert key_in(request_with(**headers)) is None


def test_a_name_alone_is_the_key_for_clients_that_have_no_password() -> None:
    assert key_in(request_with(authorization=basic("secret"))) == "secret"


def test_the_headers_own_names_go_before_authorization() -> None:
    assert key_in(request_with(authorization="Bearer second", x_key="first")) == "first"


@given(st.text(st.characters(max_codepoint=255)))
def test_any_authorization_can_be_read(value: str) -> None:
    found = key_in(request_with(authorization=value))
    assert found is None or found
