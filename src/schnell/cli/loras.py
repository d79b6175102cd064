from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from schnell.cli.output import print_json

loras_app = typer.Typer(help="LoRA files and the library of them.", no_args_is_help=True)


@loras_app.command("inspect")
def inspect_file(
    file: Annotated[Path, typer.Argument(help="A .safetensors file, or Replicate's weights tar.")],
    model: Annotated[str | None, typer.Option(help="Also say whether it fits this model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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


def _print_report(report: dict[str, Any]) -> None:
    rows = {
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
    for name, value in rows.items():
        if value not in {None, ""}:
            typer.echo(f"{name:14} {value}")


def _counts(counts: dict[str, int] | None) -> str:
    return ", ".join(f"{count} {name}" for name, count in (counts or {}).items())
