"""`schnell models`: the catalogue, and fetching a model from the hub."""

from typing import Annotated

import typer

from schnell.cli.output import AsJson, print_json, say

models_app = typer.Typer(help="Which models there are, where they lie, and fetching them.", no_args_is_help=True)


@models_app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Every model of the catalogue, and whether it is here."""
    from schnell.models.catalogue import CATALOGUE

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
        )
        return
    for entry in CATALOGUE:
        typer.echo(f"{entry.name:14} {'here' if entry.is_here else 'not here':9} {entry.size:>6}  {entry.summary}")


@models_app.command("path")
def print_path(name: Annotated[str, typer.Argument(help="A model's name.")]) -> None:
    """The folder of a model that is here."""
    from schnell.models.catalogue import find_model

    typer.echo(find_model(name).path)


@models_app.command("pull")
def pull(
    name: Annotated[str, typer.Argument(help="A model's name.")],
    endpoint: Annotated[str | None, typer.Option(help="Another hub than $HF_ENDPOINT names.")] = None,
) -> None:
    """Fetch a model from the hub. Run it again to resume; `HF_TOKEN` is used where the hub asks who you are."""
    from schnell.models.catalogue import catalogue_entry
    from schnell.models.pull import pull_model

    entry = catalogue_entry(name)
    if entry.repository is None:
        say(f"{name} comes with the package")
    typer.echo(pull_model(entry, endpoint=endpoint))
