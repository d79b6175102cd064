import json
from typing import Any

import pytest

from schnell.errors import NotFoundError


def test_an_invite_is_a_link_that_is_shown_once_and_can_be_taken_back(run: Any) -> None:
    run("teams", "create", "acme")
    made = run("invites", "create", "Ada", "--admin", "--json")
    assert made["link"].startswith("http://127.0.0.1:8000/join#invite=")
    assert (made["user_name"], made["role"], made["team_name"]) == ("Ada", "ADMIN", "acme")
    listed = run("invites", "list", "--json")
    assert made["link"].partition("=")[2] not in json.dumps(listed)
    assert run("invites", "revoke", made["id"], "--json")[0]["revoked_at"]
    with pytest.raises(NotFoundError, match="no invite"):
        run("invites", "revoke", "nothing")


def test_without_json_the_link_alone_is_on_stdout(run: Any) -> None:
    run("teams", "create", "acme")
    made = run("invites", "create", "acme", "--again")
    assert made.stdout.startswith("http://127.0.0.1:8000/join#invite=")
    assert len(made.stdout.split()) == 1
    assert "send this link to acme" in made.stderr
    with pytest.raises(NotFoundError, match="nobody"):
        run("invites", "create", "nobody", "--again")


def test_the_audit_log_says_who_typed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "jo")
    run("teams", "create", "acme")
    run("keys", "create", "--name", "ci")
    run("users", "create", "Bob")
    lines = run("audit", "--json")
    assert [(each["actor"], each["via"], each["action"]) for each in lines] == [
        ("jo", "command line", "member.added"),
        ("jo", "command line", "key.made"),
        ("jo", "command line", "team.made"),
    ]
    assert [each["action"] for each in run("audit", "--action", "key", "--actor", "jo", "--json")] == ["key.made"]
    assert run("audit", "--since", "2090-01-01", "--json") == []
    assert "member.added" in run("audit", "--team", "acme", "--limit", "1").stdout
