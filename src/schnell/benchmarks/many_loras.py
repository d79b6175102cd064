"""What LoRAs cost: many in one batch, switching between two, and the slots for them when there are none."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from PIL import Image
from safetensors.torch import save_file

from schnell.adapters import convert_adapter
from schnell.benchmarks.peers import draw_with_pipeline, load_peft_adapters, stock_pipeline
from schnell.benchmarks.result import BenchmarkResult, in_own_thread, median_pair, seconds_of
from schnell.benchmarks.server import post, request_body, server_with_loras
from schnell.benchmarks.single import begin, make_job, psnr
from schnell.bootstrap import build_engine
from schnell.clock import Stopwatch
from schnell.engine.denoise import Drawing, denoise_step
from schnell.engine.device import Precision
from schnell.engine.devices import choose_device
from schnell.engine.engine import Engine
from schnell.engine.loaded_model import PromptRequest
from schnell.engine.loading import load_network
from schnell.engine.slot_linear import SlotPart, slot_parts
from schnell.engine.text import PromptEmbedding
from schnell.models.catalogue import DEFAULT_MODEL
from schnell.serving.batch_size import BatchSizer
from schnell.serving.queue import JobQueue
from schnell.serving.worker import Worker
from schnell.spec import AdapterUse, GeneratedImage, Job

REQUESTS, CLIENTS, LORAS, RANK, SCALE = 64, 16, 16, 16, 0.8
#: The standard deviation of the up factors: small, and still another picture (23 dB from the one without LoRA at 1 MP,
#: median). The embedded model's tokens find their places by exact weights: a larger random delta on every layer leaves
#: some of them between two places, where the last bit of bfloat16 decides.
UP_SPREAD: Final = 0.00005


def mixed_loras(megapixels: str) -> BenchmarkResult:
    """64 requests of 16 clients over 16 LoRAs, against the pipeline with `set_adapters` before each request.

    Both sides compute in the precision of `go_fast` on this machine. The details have both sides without it, and the
    same requests to a server over HTTP, in turns with those in process.
    """
    with TemporaryDirectory() as scratch:
        engine = drawn_size_engine()
        files = in_own_thread(lambda: write_loras(engine, Path(scratch), LORAS))
        fast = engine.precision_for(go_fast=True)
        main = _mix(engine, files, megapixels, fast)
        slow = engine.precision_for(go_fast=False)
        exact = main if fast == slow else _mix(engine, files, megapixels, slow)
        in_process, over_http = _seconds_without_and_with_http(engine, files, megapixels)
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
            "over_http_share": in_process / over_http,
            **main.to_json(),
            slow.name: exact.to_json(),
        },
    )


def proof_throughput() -> BenchmarkResult:
    """The same mix at 1 MP over HTTP, with every picture marked and signed, against neither; in turns, twice."""
    off = {"watermark": "false", "credentials": "false"}
    prompts = [_prompt(index) for index in range(REQUESTS)]
    with TemporaryDirectory() as scratch:
        made = in_own_thread(lambda: write_loras(drawn_size_engine(), Path(scratch), LORAS))
        files = [file.peer for file in made]
        pairs = [
            tuple(seconds_over_http(files, prompts, SCALE, "1", CLIENTS, **settings) for settings in ({}, off))
            for _ in range(2)
        ]
    ours, peer = (min(pair[side] for pair in pairs) for side in (0, 1))
    return BenchmarkResult(
        ours=REQUESTS / ours,
        unit="images/s",
        ours_is=f"{CLIENTS} clients, {LORAS} LoRAs, 1 MP over HTTP, marked and signed",
        peer=REQUESTS / peer,
        peer_is="the same without mark and credentials",
        ratio=peer / ours,
    )


def lora_switch() -> BenchmarkResult:
    """How much longer a request takes after one with another LoRA, both loaded; beside it, how diffusers switches."""
    with TemporaryDirectory() as scratch:
        engine = drawn_size_engine()
        files = in_own_thread(lambda: write_loras(engine, Path(scratch), 2))
        first, second = (_job(i, files[i].use, "0.25") for i in range(2))
        with running_worker(engine) as submit:
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
    exact = engine.precision_for(go_fast=False)
    rows = begin(engine, [make_job(seed=seed, megapixels="0.25") for seed in range(8)], exact)
    bare = load_network(engine.folder.path, "transformer", exact, engine.device)
    ours, peer = median_pair(lambda: engine.step(rows, exact), lambda: denoise_step(bare, rows), 21, engine.synchronize)
    return BenchmarkResult(
        ours=8 / ours,
        unit="rows/s",
        ours_is="slots in every linear layer, no LoRA in the batch",
        peer=8 / peer,
        peer_is="the same network without slots",
        ratio=peer / ours,
    )


@dataclass(frozen=True, slots=True)
class LoraFile:
    """One LoRA as two files: in PEFT's layout for the peer, and converted for our engine (`use`)."""

    peer: Path
    use: AdapterUse


@dataclass(frozen=True, slots=True)
class MixTimes:
    """Seconds for the same requests on our side, on the peer's, and on ours without LoRAs.

    `worst_psnr_db` compares our pictures with the peer's; `stages` are our seconds by stage.
    """

    ours: float
    peer: float
    plain: float
    worst_psnr_db: float
    stages: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Rates and ratios for the details of a result; `limited_by` is the stage that took longest."""
        return {
            "ratio": self.peer / self.ours,
            "images_s": REQUESTS / self.ours,
            "without_lora_images_s": REQUESTS / self.plain,
            "share_of_without_lora": self.plain / self.ours,
            "worst_psnr_db": self.worst_psnr_db,
            "share_of_time": {stage: round(seconds / self.ours, 3) for stage, seconds in self.stages.items()},
            "limited_by": max(self.stages, key=lambda stage: self.stages[stage]),
        }


class DrawnSizeEngine(Engine):
    """An engine that stops where the peer does: at the decoded picture in memory, before upscaling, check and file.

    `pictures` has the last one of each seed, `watch` the seconds by stage.
    """

    pictures: dict[int, Image.Image]
    watch: Stopwatch

    def encode_prompts(self, requests: Sequence[PromptRequest], precision: Precision) -> list[PromptEmbedding]:
        """As the engine does, timed."""
        with self.watch.timing("text"):
            encoded = super().encode_prompts(requests, precision)
            # or a GPU's seconds would count for the stage after
            self.synchronize()
            return encoded

    def step(self, drawings: Sequence[Drawing], precision: Precision) -> list[Drawing]:
        """As the engine does, timed."""
        with self.watch.timing("denoise"):
            stepped = super().step(drawings, precision)
            self.synchronize()
            return stepped

    def decode(self, drawings: Sequence[Drawing], precision: Precision, *, tiles: bool = False) -> list[Image.Image]:
        """As the engine does, timed."""
        with self.watch.timing("decode"):
            return super().decode(drawings, precision, tiles=tiles)

    def finish(self, job: Job, index: int, drawn: Image.Image, watch: Stopwatch) -> GeneratedImage | None:  # noqa: ARG002  # the engine's form
        """Keep the picture; no resampling, no check, no file."""
        self.pictures[job.seed] = drawn
        return GeneratedImage(index, job.seed, b"", "", drawn.width, drawn.height, {})


def drawn_size_engine() -> DrawnSizeEngine:
    """A `DrawnSizeEngine` over the embedded model, its networks without go_fast loaded."""
    folder = build_engine(DEFAULT_MODEL, safety=False).folder
    engine = DrawnSizeEngine(folder, choose_device("auto"))
    engine.pictures, engine.watch = {}, Stopwatch()
    in_own_thread(lambda: engine.load(engine.precision_for(go_fast=False)))
    return engine


@contextmanager
def running_worker(engine: Engine, sizer: "BatchSizer[Any] | None" = None) -> Iterator[Callable[[Job], None]]:
    """Run a worker over an engine for the block; yields a function that runs a job to its end.

    `sizer` brings what a server that has run for a while knows about batch sizes.
    """
    sizer = sizer or BatchSizer()
    worker = Worker(engine, JobQueue(sizer.limit, adapter_slots=LORAS), sizer)

    def submit(job: Job) -> None:
        worker.submit(job, lambda _: None).result()

    worker.start()
    try:
        yield submit
    finally:
        worker.stop()


def serve_all(engine: Engine, jobs: Sequence[Job], sizer: "BatchSizer[Any] | None" = None) -> None:
    """Run all jobs from `CLIENTS` clients, each of which waits for its picture before it asks for the next."""
    with running_worker(engine, sizer) as submit, ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(submit, jobs))


def write_loras(engine: Engine, folder: Path, count: int) -> list[LoraFile]:
    """Random LoRAs on every attention and feed-forward linear layer, written to `folder`."""
    parts = slot_parts(engine.network("transformer", engine.precision_for(go_fast=False)))
    targeted = {name: part for name, part in parts.items() if _is_targeted(name)}
    return [_write_lora(targeted, folder, index) for index in range(count)]


def _is_targeted(name: str) -> bool:
    return "transformer_blocks" in name and "norm" not in name


def _write_lora(layers: dict[str, SlotPart], folder: Path, index: int) -> LoraFile:
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


def _mix(engine: DrawnSizeEngine, files: Sequence[LoraFile], megapixels: str, precision: Precision) -> MixTimes:
    go_fast = precision != engine.precision_for(go_fast=False)
    jobs = [_job(i, files[i % LORAS].use, megapixels, go_fast=go_fast) for i in range(REQUESTS)]
    plain = [replace(job, id=f"plain-{job.seed}", adapters=()) for job in jobs]
    # the peer computes before our worker does, in a thread whose OpenMP team ends with it: see `in_own_thread`
    peer, theirs = in_own_thread(lambda: _time_peer(engine, jobs, files, precision))
    sizer: BatchSizer[Any] = BatchSizer()
    serve_all(engine, jobs[: 2 * CLIENTS], sizer)  # warms up, and teaches the sizer what a batch costs
    engine.forget_prompts()  # the peer caches none
    engine.watch = Stopwatch()
    ours = seconds_of(lambda: serve_all(engine, jobs, sizer))
    drawn, stages = dict(engine.pictures), dict(engine.watch.seconds)
    serve_all(engine, plain[: 2 * CLIENTS], sizer)
    engine.forget_prompts()
    without = seconds_of(lambda: serve_all(engine, plain, sizer))
    return MixTimes(ours, peer, without, min(psnr(drawn[seed], theirs[seed]) for seed in theirs), stages)


def _job(index: int, use: AdapterUse, megapixels: str, *, go_fast: bool = False) -> Job:
    job = make_job(_prompt(index), index, megapixels=megapixels, go_fast=go_fast)
    return replace(job, adapters=(use,))


def _prompt(index: int) -> str:
    names = ("red apple", "green tree", "blue car", "yellow sun", "white cat", "pink flower", "brown bear", "black hat")
    return f"{names[index % len(names)]} number {index}"


def _time_peer(
    engine: DrawnSizeEngine, jobs: Sequence[Job], files: Sequence[LoraFile], precision: Precision
) -> tuple[float, dict[int, Image.Image]]:
    """Seconds that the peer takes for the jobs after a first one that does not count, and its pictures by seed."""
    pipeline = stock_pipeline(engine.folder, precision.dtype, engine.device)
    load_peft_adapters(pipeline, [file.peer for file in files])
    pictures: dict[int, Image.Image] = {}
    _run_peer(pipeline, engine, jobs[:1], files)
    return seconds_of(lambda: pictures.update(_run_peer(pipeline, engine, jobs, files))), pictures


def _run_peer(pipeline: Any, engine: Engine, jobs: Sequence[Job], files: Sequence[LoraFile]) -> dict[int, Image.Image]:
    """The peer's pictures of the jobs by seed, request by request."""
    pictures = {}
    for i, job in enumerate(jobs):
        pipeline.set_adapters([files[i % len(files)].peer.stem], [SCALE])
        pictures[job.seed] = draw_with_pipeline(pipeline, engine.folder, job.spec, job.seed)
    return pictures


def _seconds_without_and_with_http(engine: Engine, files: Sequence[LoraFile], megapixels: str) -> tuple[float, float]:
    """Seconds of the requests in process and over HTTP, in turns, since a machine's speed changes by the minute."""
    jobs = [_job(i, files[i % LORAS].use, megapixels, go_fast=True) for i in range(REQUESTS)]
    prompts, sizer = [job.spec.prompt for job in jobs], BatchSizer[Any]()
    with drawing_over_http([file.peer for file in files], prompts, SCALE, megapixels, CLIENTS) as draw_all:
        return median_pair(lambda: serve_all(engine, jobs, sizer), draw_all, 3)


def seconds_over_http(
    files: Sequence[Path], prompts: Sequence[str], scale: float, megapixels: str, clients: int, **settings: str
) -> float:
    """Seconds of one `drawing_over_http`, after one that does not count."""
    with drawing_over_http(files, prompts, scale, megapixels, clients, **settings) as draw_all:
        draw_all()
        return seconds_of(draw_all)


@contextmanager
def drawing_over_http(
    files: Sequence[Path], prompts: Sequence[str], scale: float, megapixels: str, clients: int, **settings: str
) -> Iterator[Callable[[], None]]:
    """A new server for the block; yields what sends it one request a prompt from so many `clients`, the files in turns.

    Upscaling, safety check, file, records and credits are part of that. `settings` are the server's.

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
        server_with_loras(Path(folder), files, clients, **settings) as client,
        ThreadPoolExecutor(clients) as threads,
    ):

        def draw_all() -> None:
            list(threads.map(lambda body: post(client, "/api/features", json=body), bodies))

        yield draw_all


def _switch_seconds(submit: Callable[[Job], None], first: Job, second: Job, times: int = 40) -> tuple[float, float]:
    """Median seconds of a request after one with the same LoRA, and of a request after one with the other LoRA.

    Each job runs twice, then the other twice, so that both medians are of the same jobs over the same time.
    """
    repeated, switched = [], []
    for job in [first, second] * times:
        switched.append(seconds_of(partial(submit, job)))
        repeated.append(seconds_of(partial(submit, job)))
    return median(repeated), median(switched)


def _peer_switch_seconds(engine: Engine, files: Sequence[LoraFile]) -> tuple[float, float]:
    """Median seconds of the peer for `set_adapters`, and for unloading a LoRA and loading one from its file."""
    pipeline = stock_pipeline(engine.folder, engine.precision_for(go_fast=False).dtype, engine.device)
    load_peft_adapters(pipeline, [file.peer for file in files])
    names = [file.peer.stem for file in files]
    switches = [seconds_of(partial(pipeline.set_adapters, [name], [SCALE])) for name in names * 4]

    def reload() -> None:
        pipeline.unload_lora_weights()
        load_peft_adapters(pipeline, [files[0].peer])

    return median(switches), median(seconds_of(reload) for _ in range(3))
