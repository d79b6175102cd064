"""What commands print: JSON on stdout, everything for people on stderr."""

import json
from typing import Any

import typer


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def say(message: str) -> None:
    """A line for the person at the terminal."""
    typer.echo(message, err=True)
