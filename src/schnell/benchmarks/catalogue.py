"""The benchmarks by the names that `schnell bench --only` takes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from schnell.benchmarks.busy_neighbour import busy_neighbour
from schnell.benchmarks.joining import joining
from schnell.benchmarks.large_database import large_database
from schnell.benchmarks.many_loras import lora_switch, mixed_loras, proof_throughput, slots_installed
from schnell.benchmarks.proof import proof
from schnell.benchmarks.quantized_quality import quantized_quality
from schnell.benchmarks.result import BenchmarkResult
from schnell.benchmarks.server import server_overhead
from schnell.benchmarks.single import arithmetic_share, cold_start, go_fast, safety_cost, single_picture
from schnell.benchmarks.wide_block import wide_block


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark and one line that says what it measures."""

    summary: str
    run: Callable[[], BenchmarkResult]


BENCHMARKS: dict[str, Benchmark] = {
    "cold_start": Benchmark("process start to file, against a script over FluxPipeline", cold_start),
    "single_picture": Benchmark("1024x1024 in 4 steps with go_fast, everything loaded", single_picture),
    "go_fast": Benchmark("a denoising step of 8 rows, go_fast against float32", go_fast),
    "arithmetic_share": Benchmark("a denoising step's arithmetic against large matrix products", arithmetic_share),
    "mixed_loras_quarter_mp": Benchmark(
        "64 requests, 16 clients, 16 LoRAs at 0.25 MP, against set_adapters and FluxPipeline",
        partial(mixed_loras, "0.25"),
    ),
    "mixed_loras_one_mp": Benchmark("the same at 1 MP", partial(mixed_loras, "1")),
    "wide_block": Benchmark("blocks of FLUX.1's width with a LoRA a row, against without", wide_block),
    "lora_switch": Benchmark("alternating two LoRAs against repeating one", lora_switch),
    "slots_installed": Benchmark("a step without LoRA, with slots in every layer against none", slots_installed),
    "server_overhead": Benchmark("the server around the engine, one client", server_overhead),
    "busy_neighbour": Benchmark("the LoRA mix over HTTP beside busy processes, against none", busy_neighbour),
    "large_database": Benchmark("a history page at 1,000 keys and 100,000 records, against none", large_database),
    "safety_cost": Benchmark("a default request with the safety check, against without", safety_cost),
    "quantized_quality": Benchmark("pictures in each quantized form, against bfloat16", quantized_quality),
    "proof": Benchmark("marked and signed against neither, and what the mark survives", proof),
    "proof_throughput": Benchmark("the LoRA mix over HTTP, marked and signed against neither", proof_throughput),
    "joining": Benchmark("p95 latency at 70% load, joining at steps against whole batches", joining),
}
