"""`schnell models`: which there are, fetching one from the hub, and making one of files that are here."""

from pathlib import Path
from typing import Annotated

import typer

from schnell.cli.output import AsJson, print_json, say

models_app = typer.Typer(help="Which models there are, where they lie, fetching and adding them.", no_args_is_help=True)


@models_app.callback()
def find_folders() -> None:
    """Which models there are, where they lie, fetching and adding them."""
    from schnell.bootstrap import read_settings

    # schnell.toml may name the models folder
    read_settings()


@models_app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Every model of the catalogue, and whether it is here; and those that were added."""
    from schnell.models.catalogue import CATALOGUE, added_models, find_model

    if as_json:
        print_json(
            [
                {
                    "name": entry.name,
                    "here": entry.is_here,
                    "path": str(entry.path),
                    "repository": entry.repository,
                    "licence": entry.licence,
                    "size": entry.size,
                    "summary": entry.summary,
                }
                for entry in CATALOGUE
            ]
            + [{"name": name, "here": True, "path": str(find_model(name).path)} for name in added_models()]
        )
        return
    for entry in CATALOGUE:
        typer.echo(f"{entry.name:14} {'here' if entry.is_here else 'not here':9} {entry.size:>6}  {entry.summary}")
    for name in added_models():
        typer.echo(f"{name:14} {'here':9} {'':>6}  added from files")


@models_app.command("path")
def print_path(name: Annotated[str, typer.Argument(help="A model's name.")]) -> None:
    """The folder of a model that is here."""
    from schnell.models.catalogue import find_model

    typer.echo(find_model(name).path)


@models_app.command("pull")
def pull(
    name: Annotated[str, typer.Argument(help="A model's name.")],
    endpoint: Annotated[str | None, typer.Option(help="Another hub than $HF_ENDPOINT names.")] = None,
    without_transformer: Annotated[
        bool, typer.Option("--without-transformer", help="Only what single-file transformers lack: 10 GB of 34.")
    ] = False,
) -> None:
    """Fetch a model from the hub. Run it again to resume; `HF_TOKEN` is used where the hub asks who you are.

    The room on the disk is checked first, and every file's hash at the end.
    """
    from schnell.models.catalogue import catalogue_entry
    from schnell.models.pull import pull_model

    entry = catalogue_entry(name)
    if entry.repository is None:
        say(f"{name} comes with the package")
    typer.echo(pull_model(entry, endpoint=endpoint, without_transformer=without_transformer, say=say))


@models_app.command("add")
def add(
    paths: Annotated[list[Path], typer.Argument(help="A model folder, or the files of a model's networks.")],
    name: Annotated[str | None, typer.Option(help="What to call the model; by default after the first file.")] = None,
    donor: Annotated[
        Path | None,
        typer.Option("--from", help="A model folder to take from what the files lack; else flux-schnell's."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a model of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a model of files that are here: .safetensors or GGUF, one network or all in one. Nothing is copied.

    Each file is understood in whole or refused. The files must stay where they are.
    """
    from schnell.models.adding import add_model

    added = add_model(paths, name, donor, replace=replace)
    if as_json:
        sources = {part: str(path) for part, path in added.sources.items()}
        print_json({"name": added.folder.name, "path": str(added.folder.path), "sources": sources})
        return
    for part, path in added.sources.items():
        say(f"{part:16} {path}")
    typer.echo(f"{added.folder.name} is ready: schnell serve with SCHNELL_MODEL={added.folder.name}")


@models_app.command("remove")
def remove(name: Annotated[str, typer.Argument(help="The name of a model that was added.")]) -> None:
    """Take a model that was added off the list. The files that it was made of stay."""
    from schnell.models.adding import remove_model

    typer.echo(f"removed {remove_model(name)}")
