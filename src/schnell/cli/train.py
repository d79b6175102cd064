from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from schnell.cli.output import print_json
from schnell.cli.train_lora import add_lora_commands

train_app = typer.Typer(help="Train LoRAs and the embedded model.", no_args_is_help=True)
add_lora_commands(train_app)


@train_app.callback()
def train() -> None:
    """Train models."""


@train_app.command("mini")
def train_mini_command(
    minutes: Annotated[float, typer.Option(min=0.01, help="Training time in all, divided over the stages.")] = 240,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the work folder's last state.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    work: Annotated[Path, typer.Option(help="Where data, states and the result lie.")] = Path("work/mini"),
    start: Annotated[Path | None, typer.Option("--from", help="A model folder whose autoencoder to keep.")] = None,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Print the figures of a model; train nothing.")] = False,
    model: Annotated[
        Path | None, typer.Option(help="With --evaluate: the model folder; without: the embedded model.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --evaluate: ask for this many random icons.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make schnell-mini from nothing: data, autoencoder, text encoders, flow transformer, model folder."""
    if evaluate:
        evaluate_model(model, work, device, limit, as_json=as_json)
        return
    from schnell.training.mini.data import prepare_data
    from schnell.training.mini.progress import showing
    from schnell.training.mini.recipe import Plan, pick_device, train_mini

    with showing() as show:
        plan = Plan(work, minutes, pick_device(device), show, start=start)
        folder = train_mini(plan, prepare_data, resume=resume)
    if as_json:
        print_json({"model": str(folder)})
    else:
        typer.echo(folder)


def evaluate_model(model: Path | None, work: Path, device: str, limit: int | None, *, as_json: bool) -> None:
    """Print the figures of a model folder."""
    from schnell.models.catalogue import find_model
    from schnell.training.mini.data import prepare_data
    from schnell.training.mini.evaluation import evaluate
    from schnell.training.mini.progress import showing
    from schnell.training.mini.recipe import pick_device

    folder = model or find_model("schnell-mini").path
    with showing() as show:
        icons = prepare_data(work, show).icons
        figures = evaluate(folder, icons, limit, str(pick_device(device)), evaluation_report(show))
    if as_json:
        print_json({"model": str(folder), **figures.to_json()})
        return
    for name, value, goal in figures.rows():
        typer.echo(f"{name:42} {value:>9}  {goal}")


def evaluation_report(show: Callable[[str, float, str], None]) -> Callable[[str, float], None]:
    """Progress of a figure as a bar."""
    return lambda title, done: show(title, done, "")
