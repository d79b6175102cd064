"""`schnell loras`: the LoRA library, the teams' tokens for the sites that LoRAs come from, and a look into a file."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from schnell.cli.database import DataDir, open_database
from schnell.cli.output import AsJson, print_fields, print_json, print_rows, say
from schnell.cli.people import here

if TYPE_CHECKING:
    from schnell.database.connection import Connection
    from schnell.database.session import Database
    from schnell.loras.library import LoraLibrary
    from schnell.loras.repository import LibraryLora

loras_app = typer.Typer(help="LoRA files and the library of them.", no_args_is_help=True)
_Answer = TypeVar("_Answer")
_COLUMNS: Final = ("name", "rank", "layout", "trigger_words", "licence", "source")
LoraName = Annotated[str, typer.Argument(help="A LoRA's name or id.")]
Team = Annotated[str | None, typer.Option(help="A team's name or id; without it, the LoRAs that every team sees.")]
Model = Annotated[str | None, typer.Option(help="The model to serve them with [SCHNELL_MODEL].")]


@loras_app.command("add")
def add(
    source: Annotated[str, typer.Argument(help="A file, owner/name, or a URL.")],
    name: Annotated[str | None, typer.Option(help="Its name in the library.")] = None,
    trigger: Annotated[list[str] | None, typer.Option(help="A word that wakes it; may be given again.")] = None,
    licence: Annotated[str | None, typer.Option(help="Its licence, where the file does not say.")] = None,
    team: Team = None,
    model: Model = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Check a LoRA and put it into the library."""
    from schnell.loras.repository import Labels

    path = Path(source)
    is_file = path.is_file()
    given: dict[str, Any] = {"labels": Labels(name, tuple(trigger or ()), licence), "created_by": "cli"}

    async def run(library: "LoraLibrary", owner: str) -> "LibraryLora":
        # a file of this name goes before the reference `owner/name` that it could also be read as
        if is_file:
            return await library.add_path(path, owner=owner, note=_note_added, **given)
        with _download_bar() as show:
            return await library.add(source, owner=owner, on_progress=show, note=_note_added, **given)

    # the first LoRA may come before the first start
    added = _with_library(data_dir, model, team, run, make=True)
    if as_json:
        print_json(asdict(added))
        return
    for warning in added.warnings:
        say(f"warning: {warning}")
    say(f"added {added.name} ({added.layout}, rank {added.rank})")
    typer.echo(added.name)


@loras_app.command("list")
def list_loras(team: Team = None, model: Model = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Every LoRA of the library; with a team, those that it may name."""
    # the embedded model's LoRAs are there before the first start; a folder that was typed may be mistyped
    new = data_dir is None
    found = _with_library(data_dir, model, team, lambda library, owner: library.list(owner or None), make=new)
    print_rows(found, _COLUMNS, as_json=as_json)


@loras_app.command("show")
def show(
    name: LoraName,
    team: Team = None,
    model: Model = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """One LoRA of the library."""
    new = data_dir is None
    found = _with_library(data_dir, model, team, lambda library, owner: library.show(name, owner), make=new)
    if as_json:
        print_json(asdict(found))
    else:
        print_fields(asdict(found))


@loras_app.command("remove")
def remove(
    name: LoraName,
    team: Team = None,
    model: Model = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Take a LoRA out of the library."""
    removed = _with_library(data_dir, model, team, lambda library, owner: library.remove(name, owner, _note_removed))
    if as_json:
        print_json(asdict(removed))
    else:
        say(f"removed {removed.name}")


@loras_app.command("token")
def keep_token(
    site: Annotated[str, typer.Argument(help="huggingface, civitai or replicate.")],
    team: Annotated[str, typer.Option(help="The team's name or id.")],
    remove: Annotated[bool, typer.Option("--remove", help="Forget the team's token.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Give a team its own token for a site that LoRAs come from. It is asked for, or read from a pipe; never shown."""
    from schnell.accounts.administration import record_token
    from schnell.bootstrap import build_source_tokens, read_settings
    from schnell.clock import now
    from schnell.loras.tokens import read_site

    known = read_site(site)
    token = "" if remove else _ask_token()

    async def run() -> None:
        settings = read_settings(data_dir=data_dir)
        async with open_database(settings) as database:
            tokens, team_id = build_source_tokens(settings, database), await _team_id(database, team)

            async def note(connection: "Connection") -> None:
                action = "source-token.removed" if remove else "source-token.set"
                await record_token(connection, here(), action, known, team_id)

            await (tokens.forget(team_id, known, note) if remove else tokens.keep(team_id, known, token, now(), note))

    asyncio.run(run())
    say(f"{'forgot' if remove else 'kept'} the token of {team} for {known}")


@loras_app.command("inspect")
def inspect_file(
    file: Annotated[Path, typer.Argument(help="A .safetensors file, or Replicate's weights tar.")],
    model: Annotated[str | None, typer.Option(help="Also say whether it fits this model.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a LoRA file is: layout, model, layers, rank, alpha, trigger words; or what is wrong with it.

    Reads the header only. The exit code is 1 for a file that cannot be served.
    """
    from schnell.adapters import inspect_adapter, read_model_shape
    from schnell.models.catalogue import find_model

    shape = read_model_shape(find_model(model).path) if model else None
    report = asdict(inspect_adapter(file, shape=shape))
    if as_json:
        print_json({"file": str(file)} | report)
    else:
        _print_report(report)
    if report["problem"]:
        raise typer.Exit(1)


async def _note_added(connection: "Connection", lora: "LibraryLora") -> None:
    await _note(connection, "lora.added", lora)


async def _note_removed(connection: "Connection", lora: "LibraryLora") -> None:
    await _note(connection, "lora.removed", lora)


async def _note(connection: "Connection", action: str, lora: "LibraryLora") -> None:
    from schnell.accounts.administration import record_lora

    await record_lora(connection, here(), action, lora.name, lora_id=lora.id, owner=lora.owner)


def _with_library(
    data_dir: Path | None,
    model: str | None,
    team: str | None,
    action: "Callable[[LoraLibrary, str], Awaitable[_Answer]]",
    *,
    make: bool = False,
) -> _Answer:
    """Run `action` on the library, with the owner's id: that of the team named, or empty for no team."""
    from schnell.bootstrap import build_loras, read_settings

    async def run() -> _Answer:
        settings = read_settings(data_dir=data_dir, model=model)
        async with open_database(settings, make=make) as database:
            return await action(build_loras(settings, database), await _team_id(database, team))

    return asyncio.run(run())


async def _team_id(database: "Database", team: str | None) -> str:
    from schnell.accounts.teams import find_team

    if team is None:
        return ""
    async with database.read() as connection:
        return (await find_team(connection, team)).id


def _ask_token() -> str:
    # asked for without an echo, never an option: options stay in the shell's history and show in process lists
    return str(typer.prompt("Token", hide_input=True)) if sys.stdin.isatty() else sys.stdin.readline().strip()


@contextmanager
def _download_bar() -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr; the yielded function takes the bytes received and, where known, the bytes in all."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("fetching", total=None)
        yield lambda received, total: bar.update(task, completed=received, total=total)


def _print_report(report: dict[str, Any]) -> None:
    print_fields(
        {
            "layout": report["layout"],
            "made for": report["made_for"],
            "keys": f"{report['matched_keys']} of {report['keys']} match a layer of FLUX.1",
            "modules": _counts(report["modules"]),
            "forms": _counts(report["forms"]),
            "rank": report["rank"],
            "alpha": report["alpha"],
            "width": report["width"],
            "trigger words": ", ".join(report["trigger_words"]),
            "base model": ", ".join(report["base_model"]),
            "licence": report["licence"],
            "sha256": report["sha256"],
            "warning": "; ".join(report["warnings"]),
            "problem": report["problem"],
        }
    )


def _counts(counts: dict[str, int] | None) -> str:
    return ", ".join(f"{count} {name}" for name, count in (counts or {}).items())
