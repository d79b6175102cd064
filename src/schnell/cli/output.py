"""What all commands share: results on stdout, messages and progress on stderr, and days as they are typed."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
#: Called with a stage's name, the part of it that is done (0 to 1), and a note.
ShowProgress = Callable[[str, float, str], None]


def read_day(text: str | datetime) -> datetime:
    """The first moment of a day such as 2026-01-31, in UTC. Raises typer.BadParameter."""
    # typer gives a default through here, too
    if isinstance(text, datetime):
        return text
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise typer.BadParameter(f"must be a day such as 2026-01-31, got {text!r}") from None


def read_moment(text: str | datetime) -> datetime:
    """A day, or a moment such as 2026-01-31T12:30; in UTC where it names no zone. Raises typer.BadParameter."""
    if isinstance(text, datetime):
        return text
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"must be a day such as 2026-01-31, got {text!r}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


Day = Annotated[datetime | None, typer.Option(parser=read_day, metavar="DAY", help="A day, such as 2026-11-01 (UTC).")]


def print_json(value: Any) -> None:
    """One JSON document on stdout; times as ISO 8601, other values that JSON lacks as their text."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_as_text))


def print_rows(rows: Sequence[Any], columns: Sequence[str], *, as_json: bool) -> None:
    """Dataclasses on stdout: as one JSON list with all their fields, or as a table of some `columns`."""
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    cells = [list(columns), *([_cell(getattr(row, name)) for name in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    for line in cells:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_fields(fields: dict[str, Any]) -> None:
    """Names and values on stdout, one pair a line; those that are None or empty are left out."""
    for name, value in fields.items():
        shown = ", ".join(value) if isinstance(value, tuple) else value
        if shown not in {None, ""}:
            typer.echo(f"{name:14} {shown}")


def say(message: str) -> None:
    """A line on stderr, so that it never mixes with a result that is piped on."""
    typer.echo(message, err=True)


@contextmanager
def progress_bars() -> Iterator[ShowProgress]:
    """Progress bars on stderr, one for each stage that the yielded function is called with."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        TextColumn("{task.percentage:>4.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars: dict[str, TaskID] = {}

        def show(stage: str, done: float, note: str) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=1.0, note="")
            progress.update(bars[stage], completed=done, note=note)

        yield show


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return "-" if value is None else str(value)


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
