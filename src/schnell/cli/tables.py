import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import typer


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
