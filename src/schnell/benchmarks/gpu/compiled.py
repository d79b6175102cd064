"""The blocks compiled: what that takes, what a step takes then, and whether 50 LoRAs in turn compile anything anew."""

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch

from schnell.benchmarks.gpu.drawing import make_job, size_name, start
from schnell.benchmarks.gpu.lab import Figures, Lab
from schnell.benchmarks.gpu.random_loras import make_loras, under_other_names
from schnell.benchmarks.gpu.random_model import RandomEngine
from schnell.engine.denoise import Drawing, denoise_step
from schnell.engine.device import Precision
from schnell.engine.engine import Engine
from schnell.spec import AdapterUse, Size

#: How many rows a compiled step takes: other numbers are filled up to the next of these.
_ROWS = (1, 2, 4)


def compiled(lab: Lab) -> Figures:
    """Seconds to compile, milliseconds of a step by rows and size, recompilations under 50 LoRAs of mixed ranks."""
    engine = RandomEngine(lab.shape, lab.folder, lab.device)
    precision = engine.precision_for(go_fast=False)
    loras = make_loras(lab, [4, 8] if lab.is_dry else [16, 64])
    network: Any = engine.network("transformer", precision)
    network.compile_repeated_blocks(dynamic=True, **({"backend": "eager"} if lab.is_dry else {}))
    step = partial(_static_step, engine, network, precision)
    first = perf_counter()
    for size in (lab.shape.middle, lab.shape.small):
        for rows in _ROWS[: 2 if lab.is_dry else None]:
            batch = _rows(engine, size, [loras[-1].use] * rows, precision)
            yield lab.attempt(f"{size_name(size)}_rows_{rows}_ms", partial(lab.milliseconds, partial(step, batch)))
    yield "compile_and_time_seconds", perf_counter() - first
    turns = under_other_names(loras, 4 if lab.is_dry else 50)
    yield lab.attempt("fifty_loras", partial(_in_turn, lab, engine, precision, step, turns))


def _rows(engine: Engine, size: Size, uses: Sequence[AdapterUse], precision: Precision) -> list[Drawing]:
    return start(engine, [make_job(size, seed, [use]) for seed, use in enumerate(uses)], precision)


def _static_step(engine: Engine, network: Any, precision: Precision, rows: Sequence[Drawing]) -> None:
    routing = engine._loaded_model(precision).routing
    with routing.using([row.slots for row in rows], static=True):
        denoise_step(network, rows)


def _in_turn(
    lab: Lab, engine: Engine, precision: Precision, step: Callable[[list[Drawing]], None], uses: Sequence[AdapterUse]
) -> dict[str, Any]:
    """One LoRA after the other, each at another size and number of rows: mean milliseconds, and who had to compile."""
    spent: list[float] = []
    recompiled: list[str] = []
    for index, use in enumerate(uses):
        if lab.seconds_left() < 1:
            break
        size = lab.shape.small if index % 2 else lab.shape.middle
        rows = _ROWS[index % (2 if lab.is_dry else len(_ROWS))]
        batch = _rows(engine, size, [use] * rows, precision)
        begin = perf_counter()
        try:
            with torch.compiler.set_stance("fail_on_recompile"):
                step(batch)
        except RuntimeError as error:
            recompiled.append(f"{use.name}: {error}"[:200])
            step(batch)
        lab.synchronize()
        spent.append((perf_counter() - begin) * 1e3)
    return {
        "loras": len(spent),
        "mean_ms": sum(spent) / len(spent),
        "recompilations": len(recompiled),
        "first": recompiled[:1],
    }
