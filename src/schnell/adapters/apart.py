"""Convert and inspect files in a process of their own, which ends with its file.

Both parse what anybody may have made. In a thread of the server they would hold Python's lock, and with it every other
request and the engine, for as long as a file of 20,000 tensors takes; a process is also what can be stopped, and what a
full memory ends instead of the server. See docs/decisions/0046.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from schnell.adapters.canonical import check_fits, read_adapter, read_info
from schnell.adapters.convert import ConvertedAdapter
from schnell.adapters.inspect import AdapterReport
from schnell.adapters.shape import ModelShape
from schnell.errors import AdapterError, DiskError
from schnell.side_processes import SideProcesses

_log = logging.getLogger(__name__)
#: A file up to this size is not worth a process: what can be wrong with it takes milliseconds to find.
SMALL_BYTES: Final = 256 * 1024
#: The process stands behind the engine for a processor, also while it starts: that is most of what a file takes.
_START: Final = """
import ctypes, os, runpy, signal, sys
if sys.platform == "linux":
    # it may be paused when the server is killed, and would stay so for ever: PR_SET_PDEATHSIG ends it, too
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.nice(10)
runpy.run_module("schnell.adapters", run_name="__main__")
"""
#: numpy's library of matrix products starts a thread a core, which spin for a while: a quarter of what the start costs.
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1"}
_TUPLES: Final = ("trigger_words", "base_model", "warnings")


async def convert_apart(  # noqa: PLR0913 - what `convert_adapter` takes, and beside what
    source: Path,
    folder: Path,
    beside: SideProcesses,
    *,
    shape: ModelShape,
    max_bytes: int,
    peft_config: Mapping[str, Any] | None = None,
) -> ConvertedAdapter:
    """`convert_adapter` in a process of its own, one of those `beside` the engine.

    Raises as it does, and DiskError where the file cannot be written.
    """
    task = {
        "task": "convert",
        "source": str(source),
        "folder": str(folder),
        "max_bytes": max_bytes,
        "shape": asdict(shape),
        "peft_config": None if peft_config is None else dict(peft_config),
    }
    answer = await _run(task, beside)
    path = folder / f"{answer['sha256']}.safetensors"
    return await asyncio.to_thread(_open_converted, path, answer["sha256"], shape)


async def inspect_apart(source: Path, beside: SideProcesses, *, max_bytes: int) -> AdapterReport:
    """`inspect_adapter` in a process of its own, one of those `beside` the engine. Raises as it does."""
    report = (await _run({"task": "inspect", "source": str(source), "max_bytes": max_bytes}, beside))["report"]
    return AdapterReport(**report | {name: tuple(report[name]) for name in _TUPLES})


def _open_converted(path: Path, sha256: str, shape: ModelShape) -> ConvertedAdapter:
    check_fits(read_adapter(path), shape)
    return ConvertedAdapter(path, sha256, read_info(path))


async def _run(task: Mapping[str, Any], beside: SideProcesses) -> dict[str, Any]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _START, stdin=pipe, stdout=pipe, stderr=pipe, env=os.environ | _ENVIRONMENT
    )
    try:
        with beside.pausing(process.pid):
            written, complaints = await process.communicate(json.dumps(task).encode())
    except BaseException:
        # whoever asked is gone: nobody would take the answer
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        _log.error(
            "a LoRA's process ended with %s: %s", process.returncode, complaints.decode(errors="replace")[-2000:]
        )
        raise AdapterError("reading this file took more time or memory than this server has for it")
    answer: dict[str, Any] = json.loads(written)
    if "refused" in answer:
        raise AdapterError(answer["refused"])
    if "disk" in answer:
        raise DiskError(f"the LoRA cannot be written: {answer['disk']}")
    return answer
