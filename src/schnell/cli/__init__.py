"""The `schnell` command. Each module parses, calls one function below it, and prints."""

from schnell.cli.application import main

__all__ = ["main"]
