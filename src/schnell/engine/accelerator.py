"""What is asked of a device beside arithmetic: how long it worked, to be done, for memory back, whether it still lives.

A GPU takes its work and returns at once: what Python measures around a call is how long it took to ask. So every time
that is used for a decision or shown to somebody comes from here.
"""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Final

import torch

from schnell.spec import DeviceMemory

#: Begun by `start_timing`; called once, it waits until the device is done and gives the seconds that it worked.
Timing = Callable[[], float]

#: How libraries say that memory ran out where torch raises no `OutOfMemoryError` of its own: cuBLAS and cuDNN for their
#: workspaces, CUDA for a launch, MPS, and torch's allocator on a CPU.
_MEMORY_PHRASES: Final = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)


def start_timing(device: torch.device) -> Timing:
    """Begin to time what the device is asked from now on, in seconds; what it was asked before is not counted."""
    if device.type == "cuda":
        return _start_events(device)
    # elsewhere nothing may be under way at the start, or its end would be counted
    synchronize(device)
    start = perf_counter()

    def stop() -> float:
        synchronize(device)
        return perf_counter() - start

    return stop


def _start_events(device: torch.device) -> Timing:
    # marks on the device's own stream, so that work before the first is not counted and needs not be waited for
    stream = torch.cuda.current_stream(device)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record(stream)

    def stop() -> float:
        last.record(stream)
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3

    return stop


def make_current(device: torch.device) -> None:
    """Let the calling thread's kernels run on this device, also those of libraries that do not ask which."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type == "xpu":
        torch.xpu.set_device(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was asked. An error of an earlier call may be raised here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "xpu":
        torch.xpu.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release_memory(device: torch.device) -> None:
    """Give memory back that nobody uses: unreachable tensors, and the blocks that torch's allocator keeps for later."""
    # a tensor in a reference cycle holds its memory until the collector comes by
    gc.collect()
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
    elif device.type == "xpu":
        torch.xpu.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def memory_use(device: torch.device) -> DeviceMemory | None:
    """What is used of a device's memory now, by every process; of a CPU's, by this one. None where nothing tells."""
    try:
        if device.type in {"cuda", "xpu"}:
            free, total = torch.get_device_module(device).mem_get_info(device)
            return DeviceMemory(total - free, total)
        if device.type == "mps":
            return DeviceMemory(torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory())
        page = os.sysconf("SC_PAGE_SIZE")
        resident = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        return DeviceMemory(resident * page, os.sysconf("SC_PHYS_PAGES") * page)
    except (RuntimeError, OSError, ValueError, AttributeError):
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, of the device or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _MEMORY_PHRASES)


def is_alive(device: torch.device) -> bool:
    """Whether the device still computes.

    After some CUDA errors (an illegal address, a failed assertion, a card that fell off the bus) every further call of
    this process raises, whatever it asks; which errors those are differs by driver, so a sum is tried.
    """
    if device.type == "cpu":
        return True
    try:
        return bool(torch.ones(2, device=device).sum().item() == 2)
    except RuntimeError as error:
        return is_out_of_memory(error)
