import sys

import typer

from schnell.cli.generate import generate_command
from schnell.cli.models import models_app
from schnell.errors import FieldError, SchnellError

_USAGE_ERROR = 2
_FAILURE = 1


def build_app() -> typer.Typer:
    """The whole command with its sub-commands."""
    app = typer.Typer(
        name="schnell",
        help="A self-hosted FLUX.1 [schnell] + LoRA image service.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command("generate")(generate_command)
    app.add_typer(models_app, name="models")
    return app


def main() -> None:
    """Run the command; a failure that we understand is one line on stderr, not a stack trace."""
    try:
        build_app()()
    except SchnellError as error:
        typer.echo(f"schnell: {error.message}", err=True)
        sys.exit(_USAGE_ERROR if isinstance(error, FieldError) else _FAILURE)
    except KeyboardInterrupt:
        sys.exit(130)
