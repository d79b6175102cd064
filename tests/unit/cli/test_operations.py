from typing import Any

import pytest

from schnell.errors import NotFoundError


def test_a_change_on_the_command_line_is_in_the_audit_log(run: Any) -> None:
    run("teams", "create", "acme")
    run("users", "set", "acme", "--team", "acme", "--credit-limit", "500")
    [entry] = run("audit", "--action", "member.changed", "--json")
    assert (entry["target"], entry["via"]) == ("acme", "command line")
    assert entry["details"]["credit_limit"][1] == 500
    assert run("audit", "--action", "key", "--json") == []
    assert "member.changed" in run("audit").stdout


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("command", ["queue", "failures", "storage"])
def test_a_server_without_work_has_nothing_to_show(run: Any, command: str) -> None:
    assert run(command, "--json") == []
    with pytest.raises(NotFoundError):
        run(command, "--team", "nobody")


@pytest.mark.usefixtures("data")
def test_usage_is_grouped_by_what_there_is(run: Any) -> None:
    for by in ("day", "team", "user", "model", "lora"):
        assert run("usage", "--by", by, "--json") == []
    assert run("usage", "--by", "lora", "--csv").stdout == "name,requests,failed,pictures,credits,id\n"
    assert run("usage", "--by", "weather").exit_code == 2
