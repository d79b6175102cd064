import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from schnell.cli.application import build_app
from schnell.errors import ConflictError, NotFoundError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SCHNELL_DATA_DIR", str(tmp_path))

    def invoke(*arguments: str) -> Any:
        result = CliRunner().invoke(build_app(), list(arguments))
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return json.loads(result.stdout) if "--json" in arguments else result

    return invoke


def test_a_team_and_a_key_are_made_as_json(run: Any) -> None:
    team = run("teams", "create", "acme", "--credit-limit", "500", "--json")
    assert (team["name"], team["credit_limit"]) == ("acme", 500)
    made = run("keys", "create", "--team", "acme", "--name", "ci", "--scope", "generate", "--scope", "read", "--json")
    assert made["key"].startswith(made["prefix"])
    assert made["scopes"] == ["generate", "read"]
    listed = run("keys", "list", "--json")
    assert made["key"] not in json.dumps(listed)
    assert run("keys", "revoke", made["prefix"], "--json")[0]["revoked_at"]


def test_a_team_can_be_changed_and_switched_off(run: Any) -> None:
    run("teams", "create", "acme", "--json")
    changed = run("teams", "set", "acme", "--inactive", "--budget-window", "month", "--forbid-unsafe", "--json")[0]
    assert (changed["status"], changed["budget_window"], changed["may_disable_safety"]) == ("INACTIVE", "month", False)


def test_users_join_teams(run: Any) -> None:
    run("teams", "create", "acme", "--json")
    run("users", "create", "Jo", "--team", "acme", "--credit-limit", "7", "--json")
    assert [each["user_name"] for each in run("users", "list", "--team", "acme", "--json")] == ["acme", "Jo"]
    assert run("users", "set", "Jo", "--team", "acme", "--admin", "--json")[0]["role"] == "ADMIN"


def test_what_is_not_there_or_taken_is_named(run: Any) -> None:
    run("teams", "create", "acme", "--json")
    with pytest.raises(ConflictError, match="acme"):
        run("teams", "create", "acme", "--json")
    with pytest.raises(NotFoundError, match="nobody"):
        run("keys", "create", "--team", "nobody", "--json")


def test_pruning_an_empty_store_removes_nothing(run: Any) -> None:
    assert run("assets", "prune", "--json") == {"removed": 0, "orphans": 0}


def test_usage_of_nobody_is_empty(run: Any) -> None:
    assert run("usage", "--json") == []
    assert run("usage", "--csv").stdout.startswith("day,team,user,key,")
