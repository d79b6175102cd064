"""Write docs/command-line.md from the commands themselves: `python scripts/command_line_docs.py`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import typer.main
from typer.core import TyperArgument, TyperGroup, TyperOption

from schnell.cli.application import build_app

PAGE = Path(__file__).parent.parent / "docs" / "command-line.md"
HEAD = """# The command line

JSON goes to stdout, progress and messages to stderr. The exit status is 0 for success, 2 for a wrong value (the message
names it): of an option, of a setting, or a name that nothing has; 1 for any other failure. Commands that only read make
no data folder: they refuse one without a database.
"""


def render() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_describe(typer.main.get_command(build_app()), "schnell")])


def _describe(command: object, path: str) -> Iterator[str]:
    if isinstance(command, TyperGroup):
        for name in sorted(command.commands):
            yield from _describe(command.commands[name], f"{path} {name}")
        return
    arguments = [each for each in command.params if isinstance(each, TyperArgument)]  # type: ignore[attr-defined]
    options = [each for each in command.params if isinstance(each, TyperOption)]  # type: ignore[attr-defined]
    usage = " ".join([path, *(f"[{each.name.upper()}]" for each in arguments), *(["[OPTIONS]"] if options else [])])
    yield f"## {path}\n\n{(command.help or '').strip()}\n\n```\n{usage}\n```\n"  # type: ignore[attr-defined]
    if arguments or options:
        yield "| argument or option | meaning | default |\n|---|---|---|"
        yield from (f"| `{each.name.upper()}` | {each.help or ''} | {_default(each)} |" for each in arguments)
        yield from (f"| `{_names(each)}` | {each.help or ''} | {_default(each)} |" for each in options)
        yield ""


def _names(option: TyperOption) -> str:
    return " / ".join([*option.opts, *option.secondary_opts])


def _default(parameter: TyperArgument | TyperOption) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or value in ([], ()) or callable(value):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
    sys.stderr.write(f"wrote {PAGE}\n")
