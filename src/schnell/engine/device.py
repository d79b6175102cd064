"""Where networks run, and in which arithmetic."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch

from schnell.engine.devices import supports_bfloat16

#: Arithmetics by the names that settings, answers and receipts have for them.
PRECISIONS: Final = ("float32", "bfloat16", "float8", "int8", "int4")
#: From this compute capability on, a card multiplies float8: Ada, Hopper and later.
_FLOAT8_CAPABILITY: Final = (8, 9)
_INT8_CAPABILITY: Final = (8, 0)


@dataclass(frozen=True, slots=True)
class Precision:
    """The arithmetic of the transformer's layers, one of `PRECISIONS`. Latents between steps are float32 in all.

    `float8`, `int8` and `int4` are quantized weights (`engine.quantized`) beside bfloat16 for all else.
    """

    name: str

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of activations, and of weights that are not quantized."""
        return torch.float32 if self.name == "float32" else torch.bfloat16

    @property
    def is_quantized(self) -> bool:
        """Whether weights of the transformer are rounded further than to its dtype."""
        return self.name not in {"float32", "bfloat16"}


FLOAT32: Final = Precision("float32")
BFLOAT16: Final = Precision("bfloat16")


def choose_precision(device: torch.device, *, go_fast: bool) -> Precision:
    """The precision that a request runs in.

    On a CPU: bfloat16 for `go_fast` where the processor multiplies it faster than float32, float32
    otherwise. On a GPU: bfloat16, the format that FLUX.1's weights are published in, or float32 where it has none.
    """
    if device.type == "cpu":
        return BFLOAT16 if go_fast and has_fast_bfloat16() else FLOAT32
    return BFLOAT16 if supports_bfloat16(device) else FLOAT32


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones: with AMX, or AMD's AVX512-BF16.

    By its name and not by a stopwatch, since a seed's picture depends on it. Intel's AVX512-BF16 without AMX (Cooper
    Lake, and virtual machines that hide AMX) has half the rate of its float32 units or the same (decision 78).
    """
    features = torch.cpu.get_capabilities()
    if features.get("amx_bf16"):
        return True
    return bool(features.get("avx512_bf16")) and "Intel" not in features["cpu_name"]


def quantized_arithmetic(device: torch.device) -> Literal["float8", "int8"] | None:
    """The eight bits that a device multiplies by rows faster than bfloat16, None where it does not."""
    # AMD's cards have other float8 formats, and their capability counts something else
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability >= _FLOAT8_CAPABILITY:
        return "float8"
    return "int8" if capability >= _INT8_CAPABILITY else None


def free_memory(device: torch.device) -> int:
    """The bytes of a device's memory that nobody uses now; on a CPU, and on a GPU that can't say, the host's."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return free_host_memory()


def free_host_memory() -> int:
    """The bytes of this machine's memory that a process may take, or of the container's if it has a limit."""
    page = os.sysconf("SC_PAGE_SIZE")
    free = page * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        # what is free, and what the kernel would give up of its caches
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass  # no Linux: all of the memory, which the plan leaves a tenth of
    limit = _container_limit()
    return free if limit is None else min(free, limit)


def _container_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
