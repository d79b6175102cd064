"""The blocks compiled: how long it takes, what a step takes then, whether 50 LoRAs in turn compile anything anew."""

from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import Any, Final

import torch

from schnell.benchmarks.gpu.drawing import make_job, size_name, start
from schnell.benchmarks.gpu.lab import Figures, Lab
from schnell.benchmarks.gpu.random_loras import SCALE, make_lora, under_other_names
from schnell.benchmarks.gpu.random_model import RandomEngine
from schnell.engine.compiled_blocks import ROWS, CompiledBlocks, WarmCase
from schnell.engine.denoise import position_ids
from schnell.engine.device import Precision
from schnell.engine.engine import Engine
from schnell.engine.slot_routing import SlotUse
from schnell.spec import AdapterUse, Size


def compiled(lab: Lab) -> Figures:
    """Seconds of the warm-up, ms of a step with and without LoRAs, 50 LoRAs of mixed kinds, whole graphs."""
    engine = RandomEngine(lab.shape, lab.folder, lab.device)
    exact, fast = (engine.precision_for(go_fast=go_fast) for go_fast in (False, True))
    loras = [make_lora(lab, "lora-16", 16), make_lora(lab, "lora-64", 64, seed=1), make_lora(lab, "dora", 16, "DoRA")]
    uses = [lora.use for lora in loras]
    # what decides most comes first, each with no more programs than it needs: they take the section's time
    for name, precision in (("", exact), ("go_fast_", fast)):
        yield lab.attempt(f"{name}warm_up_s", partial(_warm_up_s, lab, engine, precision, [NONE, ONE]))
        for size in (lab.shape.middle, lab.shape.small):
            place = f"{name}{size_name(size)}"
            none = lab.attempt(f"{place}_none", partial(_step, lab, engine, precision, size, [[]]))
            yield none
            one = lab.attempt(f"{place}_one", partial(_step, lab, engine, precision, size, [uses[:1]]))
            yield one
            if "ms" in none[1] and "ms" in one[1]:
                yield f"{place}_one_over_none", one[1]["ms"] / none[1]["ms"]
    compile_lazily(lab, engine, exact)
    yield lab.attempt(
        "fifty_warm_up_s", partial(_warm_up_s, lab, engine, exact, [ONE, *OTHERS[: 1 if lab.is_dry else None]])
    )
    yield lab.attempt(
        "fifty_loras", partial(_in_turn, lab, engine, exact, under_other_names(loras, 4 if lab.is_dry else 50))
    )
    for rows in ROWS[1 : 1 if lab.is_dry else None]:
        name = f"{size_name(lab.shape.small)}_one_each_{rows}_rows"
        yield lab.attempt(name, partial(_step, lab, engine, exact, lab.shape.small, [uses[:1]] * rows))
    if lab.on_cuda:
        yield lab.attempt("graph", partial(_as_one_graph, lab, engine, exact))


_FIRST: Final = (SlotUse(1, SCALE),)
NONE: Final[WarmCase] = (1, (), "compact")
ONE: Final[WarmCase] = (1, _FIRST, "compact")
#: What 50 LoRAs of mixed kinds need besides; programs for two rows serve more of them, too.
OTHERS: Final[Sequence[WarmCase]] = ((1, _FIRST, "full"), (2, _FIRST, "compact"), (2, _FIRST, "full"))


def _warm_up_s(lab: Lab, engine: Engine, precision: Precision, cases: Sequence[WarmCase]) -> float:
    """Seconds until the programs of these cases are there."""
    begin = perf_counter()
    model = engine._loaded_model(precision)
    if model.blocks is None:
        compile_lazily(lab, engine, precision)
    model.choice.quantized = precision.is_quantized
    assert model.blocks is not None  # noqa: S101 - for the type checker: made just now
    for _ in model.blocks.warm_up(lab.shape.text_tokens, lab.device, precision.dtype, cases):
        pass
    lab.synchronize()
    return perf_counter() - begin


def compile_lazily(lab: Lab, engine: Engine, precision: Precision) -> None:
    """Compile the blocks case by case, when each is first met.

    A server makes all programs before it is ready; that is more than the minutes of a check are worth.
    """
    model = engine._loaded_model(precision)
    model.blocks = CompiledBlocks(model.transformer, model.routing, "eager" if lab.is_dry else "inductor")


def _step(
    lab: Lab, engine: Engine, precision: Precision, size: Size, rows: Sequence[Sequence[AdapterUse]]
) -> dict[str, float]:
    batch = start(engine, [make_job(size, seed, uses) for seed, uses in enumerate(rows)], precision)
    begin = perf_counter()
    engine.step(batch, precision)
    lab.synchronize()
    first = perf_counter() - begin
    return {"first_call_s": first, "ms": lab.milliseconds(lambda: engine.step(batch, precision))}


def _in_turn(lab: Lab, engine: Engine, precision: Precision, uses: Sequence[AdapterUse]) -> dict[str, Any]:
    """One LoRA after the other, each at another size and number of rows: mean milliseconds, and who had to compile."""
    spent: list[float] = []
    recompiled: list[str] = []
    sizes, counts = (lab.shape.middle, lab.shape.small), ROWS[: 1 if lab.is_dry else None]
    for index, use in enumerate(uses):
        if lab.seconds_left() < 1:
            break
        rows = [[use]] * counts[index % len(counts)]
        batch = start(engine, [make_job(sizes[index % 2], seed, each) for seed, each in enumerate(rows)], precision)
        begin = perf_counter()
        try:
            with torch.compiler.set_stance("fail_on_recompile"):
                engine.step(batch, precision)
        except RuntimeError as error:
            recompiled.append(f"{use.name}: {error}"[:200])
            engine.step(batch, precision)
        lab.synchronize()
        spent.append((perf_counter() - begin) * 1e3)
    return {
        "loras": len(spent),
        "mean_ms": sum(spent) / max(1, len(spent)),
        "recompilations": len(recompiled),
        "first": recompiled[:1],
    }


#: Replays that are timed, and calls before the capture, which the allocator and cuBLAS need.
_WARM_CALLS: Final = 3


def _as_one_graph(lab: Lab, engine: Engine, precision: Precision) -> dict[str, float]:
    """A small picture's step with a LoRA as one CUDA graph, against the same compiled step launched as it is.

    Whether graphs are worth keeping is decided by this figure: they save launches, and cost memory for every shape.
    """
    model = engine._loaded_model(precision)
    model.choice.quantized = precision.is_quantized
    [row] = start(engine, [make_job(lab.shape.small, 7)], precision)
    inputs = (
        row.latents[None].to(precision.dtype),
        row.prompt.states[None],
        position_ids(row.grid, lab.shape.text_tokens),
        torch.ones(1, device=lab.device),
        row.prompt.pooled[None],
    )
    with torch.inference_mode(), model.routing.using([(SlotUse(1, SCALE),)]):
        aside: Any = torch.cuda.Stream
        stream = aside(lab.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_CALLS):
                model.transformer(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        launched = lab.milliseconds(lambda: model.transformer(*inputs))
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model.transformer(*inputs)
        return {"launched_ms": launched, "graph_ms": lab.milliseconds(graph.replay)}
