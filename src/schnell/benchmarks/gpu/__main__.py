"""`python3 -m schnell.benchmarks.gpu`: the sections one after the other, the file, the table."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Final

#: Packages, by the names that they are imported by.
_NEEDED: Final = ("torch", "numpy", "PIL", "safetensors", "tokenizers", "structlog", "ml_dtypes")
#: Seconds that the table and the last write are kept.
_RESERVE: Final = 5.0
#: A dry run may take so many times as long.
_DRY_SLOWNESS: Final = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections that were asked for within the budget; 0 if each of them came to its end."""
    # torch then asks NVML whether there is a card, and leaves the driver alone: sections are forked from this process
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if missing := _missing():
        sys.stderr.write(f"missing: {', '.join(missing)} (docs/measurements/README.md says what the check needs)\n")
        return 2
    from schnell.benchmarks.gpu.report import Report, about_this_run
    from schnell.benchmarks.gpu.sections import SECTIONS, run_section

    options = _parse(arguments, tuple(SECTIONS))
    begin = perf_counter()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    report = Report(options.json, about_this_run(is_dry=options.dry))
    device = "cpu" if options.dry else options.device
    _import_peers()
    # `timeout` and machines whose time is over say it so; what was measured until then is to be seen
    signal.signal(signal.SIGTERM, _stop)
    try:
        for name in options.only or SECTIONS:
            # nobody waits for a card in a dry run, and a machine that tests run on may have much else to do
            slowness = _DRY_SLOWNESS if options.dry else 1
            left = slowness * options.budget - (perf_counter() - begin) - _RESERVE
            section, seconds = SECTIONS[name], min(slowness * SECTIONS[name].seconds, left)
            report.begin(name, seconds)
            if left < 1:
                report.end(name, 0.0, "no time was left")
                continue
            sys.stderr.write(f"{name}: at most {seconds:.0f} s\n")
            ending = run_section(
                section,
                seconds,
                lambda figure, name=name: report.add(name, figure),  # type: ignore[misc]  # mypy loses the default's type
                is_dry=options.dry,
                device=device,
            )
            report.end(name, ending.seconds, ending.error)
    finally:
        sys.stdout.write(report.table() + "\n")
        sys.stdout.flush()
    return int(any(section["error"] for section in report.sections.values()))


def _stop(number: int, _: object) -> None:
    sys.exit(128 + number)


def _missing() -> list[str]:
    """What the check cannot do without and is not there: told at once, since every minute with a card counts."""
    return [name for name in _NEEDED if find_spec(name) is None]


def _import_peers() -> None:
    """Once, before the sections are forked: each of them would take seconds to do it again.

    What is missing is missed where it is compared with: everything else is measured all the same.
    """
    for name in ("diffusers.pipelines.flux.pipeline_flux", "peft", "torch._dynamo", "transformers"):
        try:
            import_module(name)
        except Exception as error:  # noqa: BLE001 - two releases that do not fit raise whatever they like
            sys.stderr.write(f"{name} cannot be compared with: {type(error).__name__}: {error}\n")


def _parse(arguments: Sequence[str] | None, names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m schnell.benchmarks.gpu", description=__doc__)
    parser.add_argument("--json", type=Path, help="where the figures go; written anew after each of them")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for everything [540]")
    parser.add_argument("--only", action="append", choices=names, help="this section alone; may be given again")
    parser.add_argument("--dry", action="store_true", help="on the CPU with a tiny network: shows that it runs")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N [cuda]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
