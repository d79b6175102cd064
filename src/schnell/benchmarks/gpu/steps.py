"""The network at its true size: what it holds, what a step takes, and a picture from the prompt to its file."""

from collections.abc import Iterator
from functools import partial
from io import BytesIO
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from schnell.benchmarks.gpu.compiled import compile_lazily
from schnell.benchmarks.gpu.drawing import PROMPTS, make_job, size_name, start
from schnell.benchmarks.gpu.lab import GIB, Figures, Lab
from schnell.benchmarks.gpu.random_model import RandomEngine
from schnell.benchmarks.gpu.stock import draw_stock, stock_pipeline
from schnell.engine.engine import Engine, generate
from schnell.spec import Size


def memory(lab: Lab) -> Figures:
    """GiB of each network, and the most that encoding, a step of each size, and decoding take beside them."""
    engine = RandomEngine(lab.shape, lab.folder, lab.device)
    precision = engine.precision_for(go_fast=False)
    yield "planned_peak_gib", engine.plan.peak / GIB
    begin = perf_counter()
    engine.load(precision)
    lab.synchronize()
    yield "load_seconds", perf_counter() - begin
    for name in ("transformer", "t5", "clip", "vae"):
        yield f"{name}_gib", sum(map(_nbytes, _stored(engine.network(name, precision)))) / GIB
    yield "loaded_gib", lab.allocated_gib()
    for size in lab.shape.sizes:
        yield lab.attempt(f"{size_name(size)}_gib", partial(_peaks, lab, engine, size))


def _stored(network: nn.Module) -> Iterator[Tensor]:
    """Weights, however they are stored, and without what LoRAs have beside them."""
    yield from network.parameters()
    yield from (each for name, each in network.named_buffers() if not name.endswith((".down", ".up", ".gain")))


def _nbytes(tensor: Tensor) -> int:
    return tensor.nbytes


def _peaks(lab: Lab, engine: Engine, size: Size) -> dict[str, float]:
    """Peaks above what is held anyway, by stage."""
    precision, held = engine.precision_for(go_fast=False), lab.allocated_gib()
    engine.forget_prompts()
    rows = []
    encoding = lab.peak_gib(lambda: rows.extend(start(engine, [make_job(size)], precision)))
    stepping = lab.peak_gib(lambda: engine.step(rows, precision))
    decoding = lab.peak_gib(lambda: engine.decode(rows, precision))
    return {"encode": encoding - held, "step": stepping - held, "decode": decoding - held}


def steps(lab: Lab) -> Figures:
    """Milliseconds of a step of 1, 2 and 4 rows at each size, and of decoding; nothing compiled."""
    engine = RandomEngine(lab.shape, lab.folder, lab.device)
    precision = engine.precision_for(go_fast=False)
    for size in lab.shape.sizes:
        drawings = start(engine, [make_job(size, seed) for seed in range(4)], precision)
        for rows in (1, 2, 4):
            name = f"{size_name(size)}_rows_{rows}_ms"
            batch = drawings[:rows]
            yield lab.attempt(name, partial(lab.milliseconds, partial(engine.step, batch, precision)))
        yield lab.attempt(
            f"{size_name(size)}_decode_ms",
            partial(lab.milliseconds, partial(engine.decode, drawings[:1], precision)),
        )


def picture(lab: Lab) -> Figures:
    """Seconds from the prompt to the WebP file at 1 MP in 4 steps: ours compiled; diffusers' as it is and compiled."""
    engine = RandomEngine(lab.shape, lab.folder, lab.device)
    for name, go_fast in (("bf16", False), ("go_fast", True)):
        compile_lazily(lab, engine, engine.precision_for(go_fast=go_fast))
        yield lab.attempt(name, partial(_ours, lab, engine, go_fast=go_fast))
    del engine
    # ours and the peer's weights together would not fit beside each other on every card
    lab.free()
    pipeline = stock_pipeline(lab)
    yield lab.attempt("diffusers_s", lambda: lab.seconds(lambda: _stock_file(lab, pipeline), times=3))
    pipeline.transformer.compile_repeated_blocks(**({"backend": "eager"} if lab.is_dry else {}))
    yield lab.attempt("diffusers_compiled_s", lambda: lab.seconds(lambda: _stock_file(lab, pipeline), times=3))


def _ours(lab: Lab, engine: Engine, *, go_fast: bool) -> dict[str, Any]:
    stages: dict[str, float] = {}

    def prompt_to_file() -> None:
        # a prompt that was read before would cost nothing
        engine.forget_prompts()
        stages.update(generate(engine, make_job(lab.shape.middle, go_fast=go_fast), lambda _: None).timings)

    seconds = lab.seconds(prompt_to_file)
    return {"s": seconds, "path": engine.precision_for(go_fast=go_fast).name, "stages": stages}


def _stock_file(lab: Lab, pipeline: Any) -> None:
    draw_stock(lab, pipeline, lab.shape.middle, PROMPTS[0]).save(BytesIO(), "WEBP", quality=80)
