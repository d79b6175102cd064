"""What commands print: JSON on stdout, everything for people on stderr."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def say(message: str) -> None:
    """A line for the person at the terminal."""
    typer.echo(message, err=True)


def print_values(values: Sequence[Any], columns: Sequence[str], *, as_json: bool) -> None:
    """Dataclasses as one JSON list, or as a table of some of their columns."""
    if as_json:
        print_value([asdict(value) for value in values])
        return
    rows = [list(columns), *([_cell(getattr(value, name)) for name in columns] for value in values)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_value(value: Any) -> None:
    """One JSON document on stdout; times as ISO 8601."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return "-" if value is None else str(value)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


#: Told of a stage, how far it is (0..1), and a note behind it.
Show = Callable[[str, float, str], None]


@contextmanager
def showing() -> Iterator[Show]:
    """A function that shows how far (0..1) a stage is, with a note behind it."""
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        TextColumn("{task.percentage:>4.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as progress:
        bars: dict[str, TaskID] = {}

        def show(stage: str, done: float, note: str) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=1.0, note="")
            progress.update(bars[stage], completed=done, note=note)

        yield show
