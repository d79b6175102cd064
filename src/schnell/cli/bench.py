"""`schnell bench`: each benchmark beside its peer."""

from typing import Annotated, Any

import typer

from schnell.cli.output import AsJson, print_json, say
from schnell.errors import FieldProblem, InvalidFieldError


def bench_command(
    only: Annotated[list[str] | None, typer.Option(help="Run only this benchmark; may be given again.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure schnell beside what a user would pick instead, in one run."""
    from schnell.benchmarks.catalogue import BENCHMARKS

    unknown = [name for name in only or [] if name not in BENCHMARKS]
    if unknown:
        raise InvalidFieldError(FieldProblem("only", f"must be one of {', '.join(BENCHMARKS)}, got {unknown[0]!r}"))
    results: dict[str, Any] = {}
    for name in only or BENCHMARKS:
        say(f"{name}: {BENCHMARKS[name].summary}")
        result = BENCHMARKS[name].run()
        results[name] = result.to_json(name)
        peer = "" if result.peer is None else f"   peer {result.peer:.4g}   ratio {result.ratio or 0:.3g}"
        say(f"  ours {result.ours:.4g} {result.unit}{peer}   {dict(result.details) or ''}")
    if as_json:
        print_json(results)
