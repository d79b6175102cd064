"""Many clients, many LoRAs, one engine: throughput against a loop over diffusers' pipeline."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from schnell.adapters import convert_adapter
from schnell.benchmarks.peers import draw_with_pipeline, load_peft_adapters, stock_pipeline
from schnell.benchmarks.result import BenchmarkResult, median_pair, seconds_of
from schnell.benchmarks.single import begin, make_job, psnr
from schnell.bootstrap import build_engine
from schnell.engine.engine import Engine
from schnell.engine.precision import FLOAT32
from schnell.engine.slot_linear import SlotLinear
from schnell.engine.stopwatch import Stopwatch
from schnell.models.catalogue import DEFAULT_MODEL
from schnell.serving.batch_size import BatchSizer
from schnell.serving.scheduler import Scheduler
from schnell.serving.worker import Worker
from schnell.spec import AdapterUse, GeneratedImage, Job

REQUESTS, CLIENTS, LORAS, RANK, SCALE = 64, 16, 16, 16, 0.8


class DrawnSizeEngine(Engine):
    """The engine up to the picture in memory at drawn size: where the peer stops too."""

    pictures: dict[int, Image.Image]

    def finish(self, job: Job, index: int, drawn: Image.Image, watch: Stopwatch) -> GeneratedImage | None:  # noqa: ARG002  # the engine's form
        """Keep the picture; no resampling, no check, no file."""
        self.pictures[job.seed] = drawn
        return GeneratedImage(index, job.seed, b"", "", drawn.width, drawn.height, {})


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA as the peer loads it and as our engine reads it."""

    peer: Path
    use: AdapterUse


def mixed_loras(megapixels: str) -> BenchmarkResult:
    """64 requests of 16 clients over 16 LoRAs: ours against `set_adapters` and the pipeline, request by request."""
    with TemporaryDirectory() as scratch:
        engine = drawn_size_engine()
        files = write_loras(engine, Path(scratch), LORAS)
        jobs = [_job(i, files[i % LORAS].use, megapixels) for i in range(REQUESTS)]
        plain = [replace(job, id=f"plain-{job.seed}", adapters=()) for job in jobs]
        pipeline = stock_pipeline(engine.folder, FLOAT32.dtype)
        load_peft_adapters(pipeline, [file.peer for file in files])
        theirs: dict[int, Image.Image] = {}
        serve_all(engine, jobs[:CLIENTS])
        ours = seconds_of(lambda: serve_all(engine, jobs))
        drawn = dict(engine.pictures)
        without = seconds_of(lambda: serve_all(engine, plain))
        peer = seconds_of(lambda: theirs.update(_run_peer(pipeline, engine, jobs, files)))
    return BenchmarkResult(
        ours=REQUESTS / ours,
        unit="images/s",
        ours_is=f"{CLIENTS} clients, {LORAS} LoRAs of rank {RANK} on all attention and MLP linears, {megapixels} MP",
        peer=REQUESTS / peer,
        peer_is="FluxPipeline with all adapters preloaded, set_adapters per request, inference_mode",
        ratio=peer / ours,
        details={
            "without_lora_images_s": REQUESTS / without,
            "share_of_without_lora": without / ours,
            "worst_psnr_db": min(psnr(drawn[seed], theirs[seed]) for seed in theirs),
        },
    )


def lora_switch() -> BenchmarkResult:
    """What alternating two resident LoRAs costs over repeating one; beside it, diffusers' ways of switching."""
    with TemporaryDirectory() as scratch:
        engine = drawn_size_engine()
        files = write_loras(engine, Path(scratch), 2)
        first, second = (_job(i, files[i].use, "0.25") for i in range(2))
        with serving(engine) as submit:
            submit(first), submit(second)
            repeating, alternating = _switch_seconds(submit, first, second)
        set_adapters, reload_seconds = _peer_switch_seconds(engine, files)
    return BenchmarkResult(
        ours=(alternating - repeating) * 1e3,
        unit="ms",
        ours_is="median request alternating two LoRAs minus repeating one, in turns",
        peer=set_adapters * 1e3,
        peer_is="diffusers' set_adapters",
        details={"repeating_ms": repeating * 1e3, "peer_load_and_unload_ms": reload_seconds * 1e3},
    )


def slots_installed() -> BenchmarkResult:
    """A step without any LoRA, with slots in every layer, against the same network without slots."""
    bare, slotted = build_engine(DEFAULT_MODEL, safety=False), build_engine(DEFAULT_MODEL, safety=False)
    jobs = [make_job(seed=seed, megapixels="0.25") for seed in range(8)]
    bare_rows, slotted_rows = begin(bare, jobs, FLOAT32), begin(slotted, jobs, FLOAT32)
    _remove_slots(bare)
    ours, peer = median_pair(lambda: slotted.step(slotted_rows, FLOAT32), lambda: bare.step(bare_rows, FLOAT32), 21)
    return BenchmarkResult(
        ours=8 / ours,
        unit="rows/s",
        ours_is="slots in every linear layer, no LoRA in the batch",
        peer=8 / peer,
        peer_is="the same network without slots",
        ratio=peer / ours,
    )


def drawn_size_engine() -> DrawnSizeEngine:
    """The embedded model's engine, stopping at drawn size."""
    folder = build_engine(DEFAULT_MODEL, safety=False).folder
    engine = DrawnSizeEngine(folder, torch.device("cpu"))
    engine.pictures = {}
    engine.load(FLOAT32)
    return engine


def write_loras(engine: Engine, folder: Path, count: int) -> list[LoraFile]:
    """Random LoRAs on every attention and feed-forward linear, as PEFT files and converted."""
    layers = {
        name: layer
        for name, layer in engine.network("transformer", FLOAT32).named_modules()
        if isinstance(layer, SlotLinear) and _is_targeted(name)
    }
    return [_write_lora(layers, folder, index) for index in range(count)]


def _is_targeted(name: str) -> bool:
    return "transformer_blocks" in name and "norm" not in name


def _write_lora(layers: dict[str, SlotLinear], folder: Path, index: int) -> LoraFile:
    generator = torch.Generator().manual_seed(index)
    tensors = {}
    for name, layer in layers.items():
        down = torch.randn(RANK, layer.in_features, generator=generator) * layer.in_features**-0.5
        up = torch.randn(layer.out_features, RANK, generator=generator) * 0.02
        tensors[f"transformer.{name}.lora_A.weight"], tensors[f"transformer.{name}.lora_B.weight"] = down, up
    path = folder / f"lora_{index}.safetensors"
    save_file(tensors, path)
    converted = convert_adapter(path, folder / "converted")
    return LoraFile(path, AdapterUse(path.stem, converted.sha256, converted.path, SCALE))


def _job(index: int, use: AdapterUse, megapixels: str) -> Job:
    names = ("red apple", "green tree", "blue car", "yellow sun", "white cat", "pink flower", "brown bear", "black hat")
    job = make_job(f"{names[index % len(names)]} number {index}", index, megapixels=megapixels, go_fast=False)
    return replace(job, adapters=(use,))


class serving:  # noqa: N801  # reads as a verb where it is used: with serving(engine) as submit
    """A worker over an engine for the duration of a block; gives a function that runs a job to its end."""

    def __init__(self, engine: Engine) -> None:
        sizer: BatchSizer[Any] = BatchSizer()
        self._worker = Worker(engine, Scheduler(sizer.limit, adapter_slots=LORAS), sizer)

    def __enter__(self) -> Callable[[Job], None]:
        """Start the worker."""
        self._worker.start()
        return self._submit

    def __exit__(self, *_: object) -> None:
        """Stop the worker."""
        self._worker.stop()

    def _submit(self, job: Job) -> None:
        self._worker.submit(job, lambda _: None).result()


def serve_all(engine: Engine, jobs: Sequence[Job]) -> None:
    """Run all jobs from as many clients as there are, each waiting for its picture before it asks for the next."""
    with serving(engine) as submit, ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(submit, jobs))


def _run_peer(pipeline: Any, engine: Engine, jobs: Sequence[Job], files: Sequence[LoraFile]) -> dict[int, Image.Image]:
    pictures = {}
    for i, job in enumerate(jobs):
        pipeline.set_adapters([files[i % len(files)].peer.stem], [SCALE])
        pictures[job.seed] = draw_with_pipeline(pipeline, engine.folder, job.spec, job.seed)
    return pictures


def _switch_seconds(submit: Callable[[Job], None], first: Job, second: Job, times: int = 15) -> tuple[float, float]:
    repeated, alternated = [], []
    for i in range(times):
        repeated.append(seconds_of(partial(_submit_both, submit, first, first)) / 2)
        pair = (first, second) if i % 2 else (second, first)
        alternated.append(seconds_of(partial(_submit_both, submit, *pair)) / 2)
    return median(repeated), median(alternated)


def _submit_both(submit: Callable[[Job], None], first: Job, second: Job) -> None:
    submit(first)
    submit(second)


def _peer_switch_seconds(engine: Engine, files: Sequence[LoraFile]) -> tuple[float, float]:
    pipeline = stock_pipeline(engine.folder, FLOAT32.dtype)
    load_peft_adapters(pipeline, [file.peer for file in files])
    names = [file.peer.stem for file in files]
    switches = [seconds_of(partial(pipeline.set_adapters, [name], [SCALE])) for name in names * 4]

    def reload() -> None:
        pipeline.unload_lora_weights()
        load_peft_adapters(pipeline, [files[0].peer])

    return median(switches), median(seconds_of(reload) for _ in range(3))


def _remove_slots(engine: Engine) -> None:
    network = engine.network("transformer", FLOAT32)
    for path, layer in list(network.named_modules()):
        if isinstance(layer, SlotLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
            plain.weight, plain.bias = layer.weight, layer.bias
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, plain)
