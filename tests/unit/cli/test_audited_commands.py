"""Every command that changes what the server keeps leaves a line in the audit log.

The commands are those of the program: a new one fails here until it is said what it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import typer.main
from typer.core import TyperGroup

from mini_loras import write_lora
from proof import keys
from schnell.cli.application import build_app

#: What only looks, or what leaves the database alone.
LOOKING: Final = frozenset({
    "audit",
    "backup",
    "bench",
    "cluster down",
    "cluster status",
    "cluster up",
    "credentials export-root",
    "credentials show",
    "doctor",
    "failures",
    "generate",
    "invites list",
    "keys list",
    "loras inspect",
    "loras list",
    "loras show",
    "mcp",
    "models add",
    "models list",
    "models path",
    "models pull",
    "models remove",
    "queue",
    "serve",
    "storage",
    "teams list",
    "train lora",
    "usage",
    "users list",
    "verify",
})  # fmt: skip
#: The others, in an order in which each can be run, with what follows the command. `{}` stands for what was made last.
CHANGES: Final[Mapping[str, Sequence[str]]] = {
    "teams create": ("acme",),
    "teams set": ("acme", "--credit-limit", "5"),
    "users create": ("Ada",),
    "users set": ("Ada", "--admin"),
    "keys create": ("--user", "Ada"),
    "keys set": ("{}", "--rate-limit", "60/minute"),
    "keys revoke": ("{}",),
    "invites create": ("Bob",),
    "invites revoke": ("{}",),
    "loras add": ("style.safetensors", "--team", "acme"),
    "loras remove": ("style", "--team", "acme"),
    "loras token": ("huggingface", "--team", "acme"),
    "credentials rotate": (),
    "credentials import": ("keys.pem",),
    "assets prune": (),
    "restore": ("copy", "--data-dir", "again"),
}
#: What prints no JSON.
_SILENT: Final = {"loras token", "credentials rotate", "credentials import"}


def commands() -> Iterator[str]:
    def walk(command: object, path: str) -> Iterator[str]:
        if isinstance(command, TyperGroup):
            for name, inner in command.commands.items():
                yield from walk(inner, f"{path} {name}".strip())
        else:
            yield path

    return walk(typer.main.get_command(build_app()), "")


def test_it_is_said_of_every_command_whether_it_changes_anything() -> None:
    assert set(commands()) == LOOKING | set(CHANGES)


def test_every_command_that_changes_something_says_who_did_it(run: Any, tmp_path: Path) -> None:
    write_lora(tmp_path / "style.safetensors")
    (tmp_path / "keys.pem").write_text(keys().to_pem())
    made, seen = "", 0
    for command, rest in CHANGES.items():
        if command == "restore":
            run("backup", "copy")
        arguments = [*command.split(), *(each.replace("{}", made) for each in rest)]
        answer = run(*arguments, *([] if command in _SILENT else ["--json"]), typed="hf_secret\n")
        first = answer[0] if isinstance(answer, list) else answer
        made = first.get("id", made) if isinstance(first, dict) else made
        lines = run("audit", "--json", *(["--data-dir", "again"] if command == "restore" else []))
        assert len(lines) > seen, f"schnell {command} leaves no line"
        assert lines[0]["via"] == "command line", command
        assert lines[0]["actor"], command
        assert "hf_secret" not in str(lines), command
        seen = len(lines)
