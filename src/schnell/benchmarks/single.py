"""Figures of one engine without LoRAs: a single picture, a step of a batch, what the safety check costs."""

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from schnell.benchmarks.peers import draw_with_pipeline, peer_dtype, run_quietly, run_stock_script, stock_pipeline
from schnell.benchmarks.result import BenchmarkResult, compare_seconds, median_pair
from schnell.bootstrap import build_engine
from schnell.engine.denoise import Drawing
from schnell.engine.device import BFLOAT16, Precision
from schnell.engine.engine import Engine, generate
from schnell.engine.loaded_model import PromptRequest
from schnell.models.catalogue import DEFAULT_MODEL
from schnell.spec import GenerationSpec, Job, resolve_size

PROMPT = "red apple on a blue background"


def make_job(prompt: str = PROMPT, seed: int = 7, *, megapixels: str = "1", go_fast: bool = True) -> Job:
    """A job for one square picture in four steps."""
    spec = GenerationSpec(prompt, resolve_size("1:1", megapixels), go_fast=go_fast)
    return Job(id=f"bench-{seed}", team_id="bench", spec=spec, seed=seed)


def begin(engine: Engine, jobs: list[Job], precision: Precision) -> list[Drawing]:
    """The drawings of jobs without LoRAs before their first step, one an output."""
    prompts = engine.encode_prompts([PromptRequest(job.spec.prompt) for job in jobs], precision)
    return [drawing for job, prompt in zip(jobs, prompts, strict=True) for drawing in engine.begin(job, prompt)]


def cold_start() -> BenchmarkResult:
    """From process start to file, `schnell generate` against a script of five lines over diffusers' pipeline."""
    engine = build_engine(DEFAULT_MODEL, safety=False)
    with TemporaryDirectory() as scratch:
        ours = [sys.executable, "-m", "schnell", "generate", PROMPT, "--seed", "7", "--output", f"{scratch}/ours.webp"]
        return compare_seconds(
            lambda: run_quietly(ours),
            lambda: run_stock_script(engine, PROMPT, Path(scratch) / "peer.webp"),
            ours_is="schnell generate, safety check included",
            peer_is="FluxPipeline.from_pretrained, the same prompt and seed, resize, save",
            times=3,
        )


def single_picture() -> BenchmarkResult:
    """1024x1024 in 4 steps with go_fast, everything loaded: to the finished file, against the stock pipeline."""
    engine, job = build_engine(DEFAULT_MODEL), make_job()
    dtype = peer_dtype(engine)
    pipeline = stock_pipeline(engine.folder, dtype, engine.device)

    def stock() -> None:
        picture = draw_with_pipeline(pipeline, engine.folder, job.spec, job.seed)
        picture.resize(job.spec.size, Image.Resampling.LANCZOS)

    result = compare_seconds(
        lambda: generate(engine, job, lambda _: None),
        stock,
        ours_is="prompt to WebP file with receipt and safety check",
        peer_is=f"FluxPipeline in {_name(dtype)} on {engine.device}, resize; no check, no file",
    )
    stages = generate(engine, job, lambda _: None).timings
    return replace(result, details={"stages_s": {stage: round(value, 4) for stage, value in stages.items()}})


def safety_cost() -> BenchmarkResult:
    """A default request, 1 MP in 4 steps to the finished file, with the safety check and without."""
    checked, unchecked, job = build_engine(DEFAULT_MODEL), build_engine(DEFAULT_MODEL, safety=False), make_job()
    result = compare_seconds(
        lambda: generate(checked, job, lambda _: None),
        lambda: generate(unchecked, job, lambda _: None),
        ours_is="1024x1024 in 4 steps with the safety check",
        peer_is="the same without it",
    )
    stages = generate(checked, job, lambda _: None).timings
    return replace(result, details={"check_s": stages["safety"], "share": stages["safety"] / sum(stages.values())})


def go_fast() -> BenchmarkResult:
    """Denoising a batch of 8 at 1 MP: go_fast against the path without it (the same where the device has no other).

    The ratio is the speed-up: the seconds without go_fast over those with it.
    """
    engine = build_engine(DEFAULT_MODEL, safety=False)
    fast, exact = (engine.precision_for(go_fast=go_fast) for go_fast in (True, False))
    jobs = [make_job(seed=seed) for seed in range(8)]
    exact_rows, fast_rows = begin(engine, jobs, exact), begin(engine, jobs, fast)
    ours, peer = median_pair(
        lambda: engine.step(fast_rows, fast), lambda: engine.step(exact_rows, exact), 5, engine.synchronize
    )
    return BenchmarkResult(
        ours=ours,
        unit="s/step",
        ours_is=f"go_fast: {fast.name}",
        peer=peer,
        peer_is=exact.name,
        ratio=peer / ours,
        details={
            "path": fast.name,
            "native_bfloat16": fast == BFLOAT16,
            "psnr_db": None if fast == exact else _psnr_between(engine, jobs[0], fast, exact),
        },
    )


def _psnr_between(engine: Engine, job: Job, fast: Precision, exact: Precision) -> float:
    return psnr(_draw(engine, job, fast), _draw(engine, replace(job, id="exact"), exact))


def _draw(engine: Engine, job: Job, precision: Precision) -> Image.Image:
    drawings = begin(engine, [job], precision)
    while not drawings[0].is_done:
        drawings = engine.step(drawings, precision)
    return engine.decode(drawings, precision)[0]


def psnr(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB, 100 for equal pictures."""
    error = float(np.mean((np.asarray(first, np.float64) - np.asarray(second, np.float64)) ** 2))
    return 100.0 if error == 0 else min(100.0, 10 * float(np.log10(255**2 / error)))


def arithmetic_share() -> BenchmarkResult:
    """Useful floating-point operations of a step, batch 8 at 1 MP, against the device's large matrix products."""
    engine = build_engine(DEFAULT_MODEL, safety=False)
    exact = engine.precision_for(go_fast=False)
    drawings = begin(engine, [make_job(seed=seed) for seed in range(8)], exact)
    # the ceiling of this device in the same number format; a GPU is filled by a larger product only
    side = 1024 if engine.device.type == "cpu" else 8192
    square = torch.randn(side, side, dtype=exact.dtype, device=engine.device)
    step, product = median_pair(
        lambda: engine.step(drawings, exact), lambda: square @ square, settle=engine.synchronize
    )
    tokens = len(drawings[0].latents) + engine.folder.sequence_length
    ours = step_operations(engine, rows=8, tokens=tokens) / step / 1e9
    ceiling = 2 * side**3 / product / 1e9
    return BenchmarkResult(
        ours=ours,
        unit="GFLOP/s",
        ours_is="linear layers and attention of one step",
        peer=ceiling,
        peer_is=f"{side}x{side} {exact.name} matrix product on {engine.device}",
        ratio=ours / ceiling,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def step_operations(engine: Engine, *, rows: int, tokens: int) -> float:
    """Floating-point operations of one denoising step: two a weight a token, and attention's two products.

    Modulation layers see one vector a row; text and image tokens are counted alike, as both pass every single block.
    """
    config = engine.folder.transformer
    width = config["num_attention_heads"] * config["attention_head_dim"]
    double, single = config["num_layers"], config["num_single_layers"]
    # a double block has 12 width^2 weights for each of the two streams; a single block 12 for both together
    linear = 2 * tokens * 12 * width**2 * (double + single)
    attention = 4 * tokens**2 * width * (double + single)
    return float(rows * (linear + attention))
