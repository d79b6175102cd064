import json
from typing import Any

import pytest

from schnell.errors import ConflictError, InvalidFieldError, NotFoundError


def test_a_team_and_a_key_are_made_as_json(run: Any) -> None:
    team = run("teams", "create", "acme", "--credit-limit", "500", "--json")
    assert (team["name"], team["credit_limit"]) == ("acme", 500)
    made = run("keys", "create", "--team", "acme", "--name", "ci", "--scope", "generate", "--scope", "read", "--json")
    assert made["key"].startswith(made["prefix"])
    assert made["scopes"] == ["generate", "read"]
    listed = run("keys", "list", "--json")
    assert made["key"] not in json.dumps(listed)
    assert run("keys", "revoke", made["prefix"], "--json")[0]["revoked_at"]


def test_without_json_only_what_a_script_needs_is_on_stdout(run: Any) -> None:
    made = run("teams", "create", "acme")
    assert made.stdout.strip() == run("teams", "list", "--json")[0]["id"]
    assert "schnell keys create --team 'acme'" in made.stderr
    key = run("keys", "create", "--team", "acme")
    assert "a key of acme's, which may generate, read" in key.stderr
    assert key.stdout.startswith(run("keys", "list", "--json")[0]["prefix"])
    assert len(key.stdout.split()) == 1
    user = run("users", "create", "Jo", "--team", "acme")
    assert user.stdout.strip() == run("users", "list", "--json")[1]["user_id"]


def test_a_team_can_be_changed_and_switched_off(run: Any) -> None:
    run("teams", "create", "acme", "--json")
    changed = run("teams", "set", "acme", "--inactive", "--budget-window", "month", "--forbid-unsafe", "--json")[0]
    assert (changed["status"], changed["budget_window"], changed["may_disable_safety"]) == ("INACTIVE", "month", False)


def test_what_is_not_given_stays_as_it_is(run: Any) -> None:
    run("teams", "create", "acme", "--credit-limit", "500", "--budget-window", "day")
    changed = run("teams", "set", "acme", "--credit-limit", "0", "--json")[0]
    assert (changed["credit_limit"], changed["budget_window"], changed["status"]) == (0, "day", "ACTIVE")
    run("users", "create", "Jo", "--team", "acme", "--admin", "--credit-limit", "7")
    member = run("users", "set", "Jo", "--team", "acme", "--inactive", "--json")[0]
    assert (member["status"], member["role"], member["credit_limit"]) == ("INACTIVE", "ADMIN", 7)


def test_users_join_teams(run: Any) -> None:
    run("teams", "create", "acme", "--json")
    run("users", "create", "Jo", "--team", "acme", "--credit-limit", "7", "--json")
    assert [each["user_name"] for each in run("users", "list", "--team", "acme", "--json")] == ["acme", "Jo"]
    assert run("users", "set", "Jo", "--team", "acme", "--admin", "--json")[0]["role"] == "ADMIN"


def test_lists_can_be_of_one_team_alone(run: Any) -> None:
    for team in ("acme", "globex"):
        run("teams", "create", team)
        run("keys", "create", "--team", team)
    assert [each["user_name"] for each in run("users", "list", "--json")] == ["acme", "globex"]
    assert [each["user_name"] for each in run("users", "list", "--team", "globex", "--json")] == ["globex"]
    globex = run("teams", "list", "--json")[1]["id"]
    assert [each["team_id"] for each in run("keys", "list", "--team", "globex", "--json")] == [globex]


@pytest.mark.parametrize(
    "command",
    [
        ("teams", "create", "globex"),
        ("teams", "set", "acme"),
        ("users", "create", "Jo", "--team", "acme"),
        ("users", "set", "acme", "--team", "acme"),
    ],
)
def test_another_budget_window_is_refused_as_a_usage_error(invoke: Any, command: tuple[str, ...]) -> None:
    invoke("teams", "create", "acme")
    refused = invoke(*command, "--budget-window", "week")
    assert refused.exit_code == 2
    assert "none, day, month" in refused.stderr


def test_a_key_ends_at_midnight_utc_of_the_day_it_is_given(run: Any) -> None:
    run("teams", "create", "acme")
    made = run("keys", "create", "--team", "acme", "--expires", "2031-01-31", "--json")
    assert made["expires_at"] == "2031-01-31T00:00:00+00:00"


def test_a_keys_name_limit_and_end_are_changed_and_taken_away(run: Any, invoke: Any) -> None:
    run("teams", "create", "acme")
    made = run("keys", "create", "--rate-limit", "5/day", "--json")
    options = ("--name", "ci", "--rate-limit", "60/minute", "--expires", "2031-01-31")
    changed = run("keys", "set", made["prefix"], *options, "--json")[0]
    shown = [changed[name] for name in ("name", "rate_limit", "expires_at")]
    assert shown == ["ci", "60/minute", "2031-01-31T00:00:00+00:00"]
    assert run("keys", "set", made["id"], "--rate-limit", "none", "--json")[0]["rate_limit"] is None
    left = run("keys", "set", made["id"], "--expires", "never", "--json")[0]
    assert (left["expires_at"], left["name"]) == (None, "ci")
    refused = invoke("keys", "set", made["id"], "--expires", "soon")
    assert (refused.exit_code, "2027-01-31, or never" in refused.stderr) == (2, True)
    with pytest.raises(InvalidFieldError, match="60/minute"):
        run("keys", "set", made["id"], "--rate-limit", "often")
    line = run("audit", "--action", "key.changed", "--json")[-1]
    assert line["details"]["rate_limit"] == ["5/day", "60/minute"]
    run("keys", "revoke", made["id"])
    with pytest.raises(ConflictError, match="revoked"):
        run("keys", "set", made["id"], "--name", "again")


def test_an_unknown_scope_is_refused(run: Any) -> None:
    run("teams", "create", "acme")
    with pytest.raises(InvalidFieldError, match="scope"):
        run("keys", "create", "--team", "acme", "--scope", "rule")


def test_what_is_not_there_or_taken_is_named(run: Any) -> None:
    run("teams", "create", "acme", "--json")
    with pytest.raises(ConflictError, match="acme"):
        run("teams", "create", "acme", "--json")
    with pytest.raises(NotFoundError, match="nobody"):
        run("keys", "create", "--team", "nobody", "--json")
    with pytest.raises(NotFoundError, match="nobody"):
        run("usage", "--team", "nobody")


@pytest.mark.usefixtures("data")
def test_a_key_is_for_the_only_team_and_asks_where_there_are_more(run: Any) -> None:
    with pytest.raises(NotFoundError, match="there is no team yet"):
        run("keys", "create")
    run("teams", "create", "acme")
    assert run("keys", "create", "--name", "mine", "--json")["user_name"] == "acme"
    run("teams", "create", "globex")
    with pytest.raises(NotFoundError, match="say which team: there are 'acme', 'globex'"):
        run("keys", "create")


def test_one_of_several_members_of_a_name_is_named_by_the_id(run: Any) -> None:
    run("teams", "create", "acme")
    first, second = (run("users", "create", "Bo", "--json")["user_id"] for _ in range(2))
    for command in (
        ("users", "set", "Bo", "--inactive"),
        ("keys", "create", "--user", "Bo"),
        ("invites", "create", "Bo", "--again"),
    ):
        with pytest.raises(InvalidFieldError, match=f"2 members are called 'Bo'.*{first}, {second}"):
            run(*command)
    run("users", "create", first)
    assert run("users", "set", first, "--inactive", "--json")[0]["user_name"] == "Bo"
    assert run("keys", "create", "--user", second, "--json")["user_id"] == second
    assert run("invites", "create", second, "--again", "--json")["user_name"] == "Bo"


@pytest.mark.parametrize(
    "command",
    [
        ("teams", "create", ""),
        ("teams", "create", "globex", "--owner", " "),
        ("users", "create", ""),
        ("invites", "create", ""),
        ("keys", "create", "--name", ""),
        ("keys", "set", "KEY", "--name", ""),
    ],
)
def test_nobody_and_nothing_has_an_empty_name(run: Any, command: tuple[str, ...]) -> None:
    run("teams", "create", "acme")
    key = run("keys", "create", "--json")["id"]
    with pytest.raises(InvalidFieldError, match="name: must not be empty"):
        run(*(key if word == "KEY" else word for word in command))


def test_a_key_for_everything_its_user_may(run: Any) -> None:
    run("teams", "create", "acme")
    assert run("keys", "create", "--scope", "all", "--json")["scopes"] == ["generate", "read", "admin"]
    run("users", "set", "acme", "--operator")
    assert run("keys", "create", "--scope", "all", "--json")["scopes"] == ["generate", "read", "admin", "operator"]
    run("users", "create", "Jo")
    with pytest.raises(InvalidFieldError, match="Jo is no operator of this server"):
        run("keys", "create", "--user", "Jo", "--scope", "operator")


def test_the_last_operator_stays_one(run: Any) -> None:
    run("teams", "create", "acme")
    run("users", "set", "acme", "--operator")
    for change in ("--no-operator", "--inactive"):
        with pytest.raises(InvalidFieldError, match="the only active operator"):
            run("users", "set", "acme", change)
    run("users", "create", "Jo")
    run("users", "set", "Jo", "--operator")
    assert run("users", "set", "acme", "--no-operator", "--json")[0]["operator"] is False


@pytest.mark.usefixtures("data")
def test_usage_of_nobody_is_empty(run: Any) -> None:
    assert run("usage", "--json") == []
    assert run("usage", "--csv").stdout.strip() == "day,team,user,key,requests,failed,pictures,credits,user_id"
