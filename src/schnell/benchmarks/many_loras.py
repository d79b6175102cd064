"""Many clients, many LoRAs, one engine: throughput against a loop over diffusers' pipeline."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import torch
from PIL import Image
from safetensors.torch import save_file

from schnell.adapters import convert_adapter
from schnell.benchmarks.peers import draw_with_pipeline, load_peft_adapters, stock_pipeline
from schnell.benchmarks.result import BenchmarkResult, in_own_thread, median_pair, seconds_of
from schnell.benchmarks.server import KEY, request_body
from schnell.benchmarks.server import serving as serving_http
from schnell.benchmarks.single import begin, make_job, psnr
from schnell.bootstrap import build_engine
from schnell.clock import Stopwatch
from schnell.engine.cpu_forward import FluxForward
from schnell.engine.denoise import Drawing, denoise_step
from schnell.engine.device import FLOAT32, Precision, choose_device
from schnell.engine.engine import Engine, PromptRequest
from schnell.engine.loading import load_network
from schnell.engine.slot_linear import SlotLinear
from schnell.engine.text import PromptEmbedding
from schnell.errors import BenchmarkError
from schnell.models.catalogue import DEFAULT_MODEL
from schnell.serving.batch_size import BatchSizer
from schnell.serving.queue import JobQueue
from schnell.serving.worker import Worker
from schnell.spec import AdapterUse, GeneratedImage, Job

_PATIENCE_SECONDS = 120


def seconds_over_http(
    files: Sequence[Path], prompts: Sequence[str], scale: float, megapixels: str, clients: int
) -> float:
    """How long a server of its own takes for one request a prompt, from so many clients, the LoRA files in turns.

    Resampling, safety check, the file, records and credits are in it; what loads and warms up the server is not.

    Raises:
        BenchmarkError: the server did not start, or refused.
    """
    alike = {"lora_scale": scale, "megapixels": megapixels, "go_fast": True}
    bodies = [
        request_body(prompt=prompt, seed=i, lora_weights=files[i % len(files)].stem, **alike)
        for i, prompt in enumerate(prompts)
    ]
    with (
        TemporaryDirectory(prefix="schnell-bench-") as folder,
        serving_http(Path(folder)) as address,
        _client(address, clients) as client,
        ThreadPoolExecutor(clients) as threads,
    ):
        for file in files:
            _post(client, "/api/loras", data={"name": file.stem}, files={"file": (file.name, file.read_bytes())})

        def draw_all() -> None:
            list(threads.map(lambda body: _post(client, "/api/features", json=body), bodies))

        draw_all()
        return seconds_of(draw_all)


def _client(address: str, clients: int) -> httpx.Client:
    return httpx.Client(
        base_url=f"http://{address}",
        headers={"API-KEY": KEY},
        limits=httpx.Limits(max_connections=clients),
        timeout=_PATIENCE_SECONDS,
    )


def _post(client: httpx.Client, path: str, **content: Any) -> None:
    answer = client.post(path, **content)
    if answer.is_error:
        raise BenchmarkError(f"{path} answered {answer.status_code}: {answer.text[:500]}")


REQUESTS, CLIENTS, LORAS, RANK, SCALE = 64, 16, 16, 16, 0.8
#: Small, and still another picture (23 dB from the one without LoRA at 1 MP, median). The embedded model's tokens find
#: their places by exact weights: a larger random delta on every layer leaves some of them between two places, where the
#: last bit of bfloat16 decides.
UP_SPREAD = 0.00005


class DrawnSizeEngine(Engine):
    """The engine up to the picture in memory at drawn size: where the peer stops too."""

    pictures: dict[int, Image.Image]
    watch: Stopwatch

    def encode_prompts(self, requests: Sequence[PromptRequest], precision: Precision) -> list[PromptEmbedding]:
        """As the engine does, timed."""
        with self.watch.timing("text"):
            return super().encode_prompts(requests, precision)

    def step(self, drawings: Sequence[Drawing], precision: Precision) -> list[Drawing]:
        """As the engine does, timed."""
        with self.watch.timing("denoise"):
            return super().step(drawings, precision)

    def decode(self, drawings: Sequence[Drawing], precision: Precision) -> list[Image.Image]:
        """As the engine does, timed."""
        with self.watch.timing("decode"):
            return super().decode(drawings, precision)

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
    """64 requests of 16 clients over 16 LoRAs: ours against `set_adapters` and the pipeline, request by request.

    In the arithmetic that `go_fast` takes here, on both sides. Among the details: in float32, on both sides, and the
    same requests to a server over HTTP.
    """
    with TemporaryDirectory() as scratch:
        engine = drawn_size_engine()
        files = in_own_thread(lambda: write_loras(engine, Path(scratch), LORAS))
        fast = engine.precision_for(go_fast=True)
        main = _mix(engine, files, megapixels, fast)
        exact = main if fast == FLOAT32 else _mix(engine, files, megapixels, FLOAT32)
        prompts = [_prompt(index) for index in range(REQUESTS)]
        over_http = seconds_over_http([file.peer for file in files], prompts, SCALE, megapixels, CLIENTS)
    return BenchmarkResult(
        ours=REQUESTS / main.ours,
        unit="images/s",
        ours_is=f"{CLIENTS} clients, {LORAS} LoRAs of rank {RANK} on all attention and MLP linears, {megapixels} MP",
        peer=REQUESTS / main.peer,
        peer_is="FluxPipeline with all adapters preloaded, set_adapters per request, inference_mode",
        ratio=main.peer / main.ours,
        details={
            "both_sides_in": fast.name,
            "over_http_images_s": REQUESTS / over_http,
            **main.to_json(),
            "float32": exact.to_json(),
        },
    )


@dataclass(frozen=True, slots=True)
class MixTimes:
    """Seconds for the mix on our side, the peer's, and ours without LoRA; how like the pictures are; where ours go."""

    ours: float
    peer: float
    plain: float
    worst_psnr_db: float
    stages: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Rates and ratios. The largest stage is what limits us."""
        return {
            "ratio": self.peer / self.ours,
            "images_s": REQUESTS / self.ours,
            "without_lora_images_s": REQUESTS / self.plain,
            "share_of_without_lora": self.plain / self.ours,
            "worst_psnr_db": self.worst_psnr_db,
            "share_of_time": {stage: round(seconds / self.ours, 3) for stage, seconds in self.stages.items()},
            "limited_by": max(self.stages, key=lambda stage: self.stages[stage]),
        }


def _mix(engine: DrawnSizeEngine, files: Sequence[LoraFile], megapixels: str, precision: Precision) -> MixTimes:
    go_fast = precision != FLOAT32
    jobs = [_job(i, files[i % LORAS].use, megapixels, go_fast=go_fast) for i in range(REQUESTS)]
    plain = [replace(job, id=f"plain-{job.seed}", adapters=()) for job in jobs]
    peer, theirs = in_own_thread(lambda: _time_peer(engine, jobs, files, precision))
    sizer: BatchSizer[Any] = BatchSizer()
    serve_all(engine, jobs[: 2 * CLIENTS], sizer)
    engine.forget_prompts()
    engine.watch = Stopwatch()
    ours = seconds_of(lambda: serve_all(engine, jobs, sizer))
    drawn, stages = dict(engine.pictures), dict(engine.watch.seconds)
    serve_all(engine, plain[: 2 * CLIENTS], sizer)
    engine.forget_prompts()
    without = seconds_of(lambda: serve_all(engine, plain, sizer))
    return MixTimes(ours, peer, without, min(psnr(drawn[seed], theirs[seed]) for seed in theirs), stages)


def _time_peer(
    engine: DrawnSizeEngine, jobs: Sequence[Job], files: Sequence[LoraFile], precision: Precision
) -> tuple[float, dict[int, Image.Image]]:
    """Seconds that the peer takes for the jobs after a first one that does not count, and its pictures by seed."""
    pipeline = stock_pipeline(engine.folder, precision.dtype).to(engine.device)
    load_peft_adapters(pipeline, [file.peer for file in files])
    pictures: dict[int, Image.Image] = {}
    _run_peer(pipeline, engine, jobs[:1], files)
    return seconds_of(lambda: pictures.update(_run_peer(pipeline, engine, jobs, files))), pictures


def lora_switch() -> BenchmarkResult:
    """What a request costs more after one of another resident LoRA; beside it, diffusers' ways of switching."""
    with TemporaryDirectory() as scratch:
        engine = drawn_size_engine()
        files = in_own_thread(lambda: write_loras(engine, Path(scratch), 2))
        first, second = (_job(i, files[i].use, "0.25") for i in range(2))
        with serving(engine) as submit:
            submit(first), submit(second)
            repeating, switching = _switch_seconds(submit, first, second)
        set_adapters, reload_seconds = in_own_thread(lambda: _peer_switch_seconds(engine, files))
    return BenchmarkResult(
        ours=(switching - repeating) * 1e3,
        unit="ms",
        ours_is="median request after another LoRA's minus after the same LoRA's, in turns",
        peer=set_adapters * 1e3,
        peer_is="diffusers' set_adapters",
        details={"repeating_ms": repeating * 1e3, "peer_load_and_unload_ms": reload_seconds * 1e3},
    )


def slots_installed() -> BenchmarkResult:
    """A step without any LoRA, with slots in every layer, against the same network without slots."""
    engine = build_engine(DEFAULT_MODEL, safety=False)
    rows = begin(engine, [make_job(seed=seed, megapixels="0.25") for seed in range(8)], FLOAT32)
    bare = FluxForward(load_network(engine.folder.path, "transformer", FLOAT32, engine.device))
    ours, peer = median_pair(lambda: engine.step(rows, FLOAT32), lambda: denoise_step(bare, rows), 21)
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
    engine = DrawnSizeEngine(folder, choose_device("auto"))
    engine.pictures, engine.watch = {}, Stopwatch()
    in_own_thread(lambda: engine.load(FLOAT32))
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
        up = torch.randn(layer.out_features, RANK, generator=generator) * UP_SPREAD
        tensors[f"transformer.{name}.lora_A.weight"], tensors[f"transformer.{name}.lora_B.weight"] = down, up
    path = folder / f"lora_{index}.safetensors"
    save_file(tensors, path)
    converted = convert_adapter(path, folder / "converted")
    return LoraFile(path, AdapterUse(path.stem, converted.sha256, converted.path, SCALE))


def _job(index: int, use: AdapterUse, megapixels: str, *, go_fast: bool = False) -> Job:
    job = make_job(_prompt(index), index, megapixels=megapixels, go_fast=go_fast)
    return replace(job, adapters=(use,))


def _prompt(index: int) -> str:
    names = ("red apple", "green tree", "blue car", "yellow sun", "white cat", "pink flower", "brown bear", "black hat")
    return f"{names[index % len(names)]} number {index}"


class serving:  # noqa: N801  # reads as a verb where it is used: with serving(engine) as submit
    """A worker over an engine for the duration of a block; gives a function that runs a job to its end."""

    def __init__(self, engine: Engine, sizer: "BatchSizer[Any] | None" = None) -> None:
        sizer = sizer or BatchSizer()
        self._worker = Worker(engine, JobQueue(sizer.limit, adapter_slots=LORAS), sizer)

    def __enter__(self) -> Callable[[Job], None]:
        """Start the worker."""
        self._worker.start()
        return self._submit

    def __exit__(self, *_: object) -> None:
        """Stop the worker."""
        self._worker.stop()

    def _submit(self, job: Job) -> None:
        self._worker.submit(job, lambda _: None).result()


def serve_all(engine: Engine, jobs: Sequence[Job], sizer: "BatchSizer[Any] | None" = None) -> None:
    """Run all jobs from as many clients as there are, each waiting for its picture before it asks for the next.

    `sizer` is what a server that has run for a while knows of batch sizes.
    """
    with serving(engine, sizer) as submit, ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(submit, jobs))


def _run_peer(pipeline: Any, engine: Engine, jobs: Sequence[Job], files: Sequence[LoraFile]) -> dict[int, Image.Image]:
    pictures = {}
    for i, job in enumerate(jobs):
        pipeline.set_adapters([files[i % len(files)].peer.stem], [SCALE])
        pictures[job.seed] = draw_with_pipeline(pipeline, engine.folder, job.spec, job.seed)
    return pictures


def _switch_seconds(submit: Callable[[Job], None], first: Job, second: Job, times: int = 40) -> tuple[float, float]:
    """Median seconds of a request whose LoRA the one before it used as well, and of one after the other LoRA.

    Each request is made twice, then the other twice, so that both kinds hold the same requests at the same times.
    """
    repeated, switched = [], []
    for job in [first, second] * times:
        switched.append(seconds_of(partial(submit, job)))
        repeated.append(seconds_of(partial(submit, job)))
    return median(repeated), median(switched)


def _peer_switch_seconds(engine: Engine, files: Sequence[LoraFile]) -> tuple[float, float]:
    pipeline = stock_pipeline(engine.folder, FLOAT32.dtype).to(engine.device)
    load_peft_adapters(pipeline, [file.peer for file in files])
    names = [file.peer.stem for file in files]
    switches = [seconds_of(partial(pipeline.set_adapters, [name], [SCALE])) for name in names * 4]

    def reload() -> None:
        pipeline.unload_lora_weights()
        load_peft_adapters(pipeline, [files[0].peer])

    return median(switches), median(seconds_of(reload) for _ in range(3))
