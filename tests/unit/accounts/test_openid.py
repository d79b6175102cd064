from typing import Any

import pytest

from schnell.accounts.openid import OpenIdConfig, OpenIdProvider
from schnell.errors import ForbiddenError

ROLES = {"staff": "MEMBER", "lead staff": "ADMIN", "true": "MEMBER", "7": "ADMIN"}


def rank(claim: Any, name: str = "groups") -> str | None:
    config = OpenIdConfig("https://login.test", "schnell", role_claim=name, roles=ROLES)
    return OpenIdProvider(config, "https://schnell.test/callback")._rank({"sub": "1", name: claim})


@pytest.mark.parametrize(
    ("claim", "found"),
    [
        ("staff", "MEMBER"),
        # a group with a space is one group
        ("lead staff", "ADMIN"),
        (["other", "lead staff"], "ADMIN"),
        (True, "MEMBER"),
        (7, "ADMIN"),
        ([7, True], "ADMIN"),
        ({"staff": {"org": "x"}}, "MEMBER"),
    ],
)
def test_a_claim_of_any_kind_is_compared_as_text(claim: Any, found: str) -> None:
    assert rank(claim) == found


@pytest.mark.parametrize("claim", [None, False, 1.5, [], "", "staff,lead", "other staff", [None], [{"staff": 1}]])
def test_what_names_no_role_gives_none_and_breaks_nothing(claim: Any) -> None:
    with pytest.raises(ForbiddenError):
        rank(claim)


def test_scopes_are_told_apart_by_spaces() -> None:
    assert rank("openid staff", "scope") == "MEMBER"
