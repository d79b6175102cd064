"""Whether a network's blocks are compiled on this machine, where the programs are kept, and steps in their sizes.

Compiling makes one program of the many small passes between FLUX's products (`engine.compiled_blocks`). It needs a C
compiler, takes a minute when it is done for the first time, and is worth it on a GPU alone: on a CPU the network's own
forward is written for few passes already. So it is decided here once, done before the server calls itself ready, and
kept on disk, where the next start finds it.
"""

import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import torch

from schnell.engine.compiled_blocks import ROWS
from schnell.engine.denoise import Drawing
from schnell.errors import ConfigurationError

#: What `SCHNELL_COMPILE` may say.
CompileSetting = Literal["auto", "on", "off"]
#: What the backend `inductor` builds with, by torch's device type: the first of these that is there.
_COMPILERS: Final = {"cuda": ("cc", "gcc", "clang"), "cpu": ("g++", "clang++", "c++")}
#: From this compute capability on, Triton makes programs for a card: Volta and later.
_TRITON_CAPABILITY: Final = (7, 0)


@dataclass(frozen=True, slots=True)
class Compiler:
    """How blocks are compiled: `backend` is torch.compile's."""

    backend: str | Callable[..., Any] = "inductor"


def choose_compiler(setting: CompileSetting, device: torch.device, folder: Path) -> Compiler | None:
    """The compiler for a device, its programs kept in `folder`; None where blocks run as they are.

    `auto` compiles on a GPU that has all that it takes; it is off on a CPU.

    Raises:
        ConfigurationError: `on`, and something that it takes is missing; the message says what.
    """
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return None
    missing = find_missing(device)
    if missing is not None:
        if setting == "on":
            raise ConfigurationError(f"SCHNELL_COMPILE is on, but {missing}")
        return None
    keep_programs(folder)
    return Compiler()


def find_missing(device: torch.device) -> str | None:
    """What compiling for this device lacks on this machine, in words that go on after "but"; None if nothing."""
    if device.type not in _COMPILERS:
        return f"torch's compiler was not tried on {device.type}: set it to off"
    # torch takes the compiler that CC or CXX names before any other
    named = os.environ.get("CC" if device.type == "cuda" else "CXX")
    wanted = (named,) if named else _COMPILERS[device.type]
    if not any(shutil.which(each) for each in wanted):
        return f"there is no C compiler ({' or '.join(wanted)}): apt-get install gcc g++ python3-dev, or set it to off"
    return _what_triton_lacks(device) if device.type == "cuda" else None


def _what_triton_lacks(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "torch came without Triton: pip install triton, or set it to off"
    # it compiles a small module of Python's for every program
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's headers are missing: apt-get install python3-dev, or set it to off"
    if torch.cuda.get_device_capability(device) < _TRITON_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is older than what Triton makes programs for: set it to off"
    return None


def keep_programs(folder: Path) -> None:
    """Let what is compiled from now on be kept in `folder`, and taken from there if it is there already.

    The compiler names programs by all that decided them, torch's and its own version among it, so that one folder may
    serve several models, cards and releases. A folder that the operator has named in torch's own variable stays.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    # Triton would take a folder in the home otherwise, which a service often cannot write to
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


def in_program_sizes(drawings: Sequence[Drawing], sizes: Sequence[int] = ROWS) -> Iterator[tuple[list[Drawing], int]]:
    """Rows in batches of those sizes for which there is a program, and how many of each batch are asked for.

    The rest of a batch is filled with its last row, without LoRA: a row too many costs less than a program too few.
    """
    start, largest = 0, max(sizes)
    while start < len(drawings):
        batch = list(drawings[start : start + largest])
        size = min(each for each in sizes if each >= len(batch))
        # what fills is never looked at, so it may as well compute without LoRAs
        yield [*batch, *[replace(batch[-1], slots=())] * (size - len(batch))], len(batch)
        start += largest
