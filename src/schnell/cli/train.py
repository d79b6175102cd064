import typer

from schnell.cli.train_lora import add_lora_commands

train_app = typer.Typer(help="Train LoRAs and the embedded model.", no_args_is_help=True)
add_lora_commands(train_app)


@train_app.callback()
def train() -> None:
    """Train models."""
