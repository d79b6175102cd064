from collections.abc import Callable
from functools import partial

from schnell.benchmarks.many_loras import lora_switch, mixed_loras, slots_installed
from schnell.benchmarks.result import BenchmarkResult
from schnell.benchmarks.single import arithmetic_share, cold_start, go_fast, single_picture

BENCHMARKS: dict[str, Callable[[], BenchmarkResult]] = {
    "cold_start": cold_start,
    "single_picture": single_picture,
    "go_fast": go_fast,
    "arithmetic_share": arithmetic_share,
    "mixed_loras_quarter_mp": partial(mixed_loras, "0.25"),
    "mixed_loras_one_mp": partial(mixed_loras, "1"),
    "lora_switch": lora_switch,
    "slots_installed": slots_installed,
}
