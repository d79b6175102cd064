"""What LoRAs cost on the card: in a step, and until one that is wanted is in its slot."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter

from schnell.benchmarks.gpu.drawing import make_job, size_name, start
from schnell.benchmarks.gpu.lab import GIB, Figures, Lab
from schnell.benchmarks.gpu.random_loras import RandomLora, make_loras
from schnell.benchmarks.gpu.random_model import RandomEngine
from schnell.engine.device import Precision
from schnell.engine.engine import Engine
from schnell.spec import AdapterUse, Size

#: LoRAs of so many ranks; all but the first are there for what a rank costs.
_RANKS = (16, 16, 64, 128)


def lora(lab: Lab) -> Figures:
    """A step with none, one, two and mixed LoRAs at two sizes, by rank; a switch from slot, memory and file."""
    engine = RandomEngine(lab.shape, lab.folder, lab.device)
    precision = engine.precision_for(go_fast=False)
    loras = make_loras(lab, [4, 4, 8, 8] if lab.is_dry else _RANKS)
    yield from _switches(lab, engine, loras, precision)
    for size in (lab.shape.middle, lab.shape.small):
        name = size_name(size)
        none = lab.attempt(f"{name}_none_ms", partial(_step_ms, lab, engine, size, [[]], precision))
        yield none
        uses = [each.use for each in loras]
        one = lab.attempt(f"{name}_one_ms", partial(_step_ms, lab, engine, size, [uses[:1]], precision))
        yield one
        if isinstance(none[1], float) and isinstance(one[1], float):
            yield f"{name}_one_over_none", one[1] / none[1]
        yield lab.attempt(f"{name}_two_ms", partial(_step_ms, lab, engine, size, [uses[:2]], precision))
        mixed = [[], uses[:1], uses[1:2], []]
        yield lab.attempt(f"{name}_mixed_4_rows_ms", partial(_step_ms, lab, engine, size, mixed, precision))
        yield lab.attempt(f"{name}_plain_4_rows_ms", partial(_step_ms, lab, engine, size, [[]] * 4, precision))
    for each in loras[2:]:
        rank = each.use.name.rpartition("-")[2]
        arguments = (lab, engine, lab.shape.middle, [[each.use]], precision)
        yield lab.attempt(f"{size_name(lab.shape.middle)}_rank_{rank}_ms", partial(_step_ms, *arguments))
    yield "held_gib", lab.allocated_gib()


def _step_ms(lab: Lab, engine: Engine, size: Size, rows: Sequence[Sequence[AdapterUse]], precision: Precision) -> float:
    drawings = start(engine, [make_job(size, seed, uses) for seed, uses in enumerate(rows)], precision)
    return lab.milliseconds(lambda: engine.step(drawings, precision))


def _switches(lab: Lab, engine: Engine, loras: Sequence[RandomLora], precision: Precision) -> Figures:
    """Milliseconds until a LoRA of rank 16 may be drawn with, by where it was before; the weights are loaded."""
    first, second = loras[0].use, loras[1].use
    engine.place_adapters([first], [1], precision)
    yield "file_mib", first.path.stat().st_size / GIB * 1024
    yield lab.attempt("from_file_ms", lambda: _placed_ms(lab, engine, [second], precision))
    # the two take turns in slot 1, so each is in memory when it comes, and not in the slot
    turns = [first, second] * (1 if lab.is_dry else 5)
    yield lab.attempt("from_memory_ms", lambda: _placed_ms(lab, engine, turns, precision) / len(turns))
    yield lab.attempt("resident_ms", lambda: _placed_ms(lab, engine, [turns[-1]] * 5, precision) / 5)


def _placed_ms(lab: Lab, engine: Engine, uses: Sequence[AdapterUse], precision: Precision) -> float:
    lab.synchronize()
    begin = perf_counter()
    for use in uses:
        engine.place_adapters([replace(use)], [1], precision)
        lab.synchronize()
    return (perf_counter() - begin) * 1e3
