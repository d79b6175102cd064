"""The command with all its sub-commands, and what its failures look like."""

import sys
from typing import Final

import typer

from schnell.cli.assets import assets_app
from schnell.cli.backup import backup_command, restore_command
from schnell.cli.bench import bench_command
from schnell.cli.cluster import cluster_app
from schnell.cli.credentials import credentials_app
from schnell.cli.doctor import doctor_command
from schnell.cli.generate import generate_command
from schnell.cli.invites import audit_command, invites_app
from schnell.cli.loras import loras_app
from schnell.cli.mcp import mcp_command
from schnell.cli.models import models_app
from schnell.cli.operations import failures_command, queue_command, storage_command, usage_command
from schnell.cli.people import keys_app, teams_app, users_app
from schnell.cli.serve import serve_command
from schnell.cli.train import train_app
from schnell.cli.verify import verify_command
from schnell.errors import SchnellError

_FAILURE: Final = 1
_USAGE_ERROR: Final = 2
#: What a shell reports for a command that SIGINT ended: 128 and the signal's number.
_INTERRUPTED: Final = 130


def build_app() -> typer.Typer:
    """The whole command with its sub-commands."""
    app = typer.Typer(
        name="schnell",
        help=r"A self-hosted FLUX.1 \[schnell] + LoRA image service.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command("serve")(serve_command)
    app.command("bench")(bench_command)
    app.command("mcp")(mcp_command)
    app.command("generate")(generate_command)
    app.command("doctor")(doctor_command)
    app.command("backup")(backup_command)
    app.command("restore")(restore_command)
    app.command("usage")(usage_command)
    app.command("queue")(queue_command)
    app.command("failures")(failures_command)
    app.command("storage")(storage_command)
    app.command("audit")(audit_command)
    app.command("verify")(verify_command)
    app.add_typer(loras_app, name="loras")
    app.add_typer(models_app, name="models")
    app.add_typer(train_app, name="train")
    app.add_typer(cluster_app, name="cluster")
    app.add_typer(teams_app, name="teams")
    app.add_typer(users_app, name="users")
    app.add_typer(invites_app, name="invites")
    app.add_typer(keys_app, name="keys")
    app.add_typer(assets_app, name="assets")
    app.add_typer(credentials_app, name="credentials")
    return app


def main() -> None:
    """Run the command. A `SchnellError` is one line on stderr and an exit code, not a stack trace."""
    try:
        build_app()()
    except SchnellError as error:
        typer.echo(f"schnell: {error.message}", err=True)
        sys.exit(_USAGE_ERROR if error.is_wrong_value else _FAILURE)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
