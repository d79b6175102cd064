from pathlib import Path
from typing import Any

import pytest

from schnell.errors import ConfigurationError, NotFoundError


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


@pytest.mark.parametrize(
    "command",
    [
        ("teams", "list"),
        ("users", "list"),
        ("keys", "list"),
        ("keys", "create"),
        ("invites", "list"),
        ("audit",),
        ("usage",),
        ("queue",),
        ("failures",),
        ("storage",),
        ("loras", "list"),
        ("loras", "show", "pixel"),
        ("assets", "prune"),
        ("credentials", "show"),
        ("credentials", "export-root"),
        ("backup", "copy"),
    ],
)
def test_a_data_folder_that_was_mistyped_is_refused_and_not_made(
    run: Any, tmp_path: Path, command: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no database in mistyped.*--data-dir"):
        run(*command, "--data-dir", "mistyped")
    assert not list(tmp_path.iterdir())


def test_a_database_file_that_was_mistyped_is_refused_and_not_made(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCHNELL_DATABASE_URL", "sqlite:mistyped.db")
    with pytest.raises(ConfigurationError, match=r"SCHNELL_DATABASE_URL: .*mistyped"):
        run("keys", "list")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [("usage", "--since"), ("usage", "--until"), ("audit", "--since"), ("keys", "create", "--expires")],
)
def test_a_day_that_is_none_is_asked_for_in_words(invoke: Any, command: tuple[str, ...]) -> None:
    refused = invoke(*command, "x")
    assert refused.exit_code == 2
    told = " ".join(refused.stderr.replace("│", " ").split())
    assert f"'{command[-1]}': must be a day such as 2026-01-31, got 'x'" in told


@pytest.mark.usefixtures("data")
def test_usage_is_grouped_by_what_there_is(run: Any) -> None:
    for by in ("day", "team", "user", "model", "lora"):
        assert run("usage", "--by", by, "--json") == []
    assert run("usage", "--by", "lora", "--csv").stdout == "name,requests,failed,pictures,credits,id\n"
    assert run("usage", "--by", "weather").exit_code == 2
