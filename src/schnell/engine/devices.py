"""Which devices to draw on: what this machine has, which of it torch can use, and why not the rest.

A GPU that is there and cannot be used is named, with the ways out. FLUX.1 [schnell] on a CPU in its place would take 34
to 67 GB of memory and minutes a picture, which nobody asked for by leaving `SCHNELL_DEVICE` alone.
"""

import logging
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch

from schnell.errors import ModelChoiceError, ModelFolderError
from schnell.models.folder import NETWORKS
from schnell.models.weight_files import weight_sources

log = logging.getLogger(__name__)

#: The oldest driver for each CUDA major version, on Linux: NVIDIA's CUDA Toolkit release notes, table "CUDA Toolkit
#: and Minimum Required Driver Version for CUDA Minor Version Compatibility".
_OLDEST_DRIVERS: Final = {11: 450, 12: 525, 13: 580}
#: A model with more bytes of weights is not put on a CPU in place of a GPU that cannot be used.
_LARGEST_UNASKED: Final = 4 << 30
#: `auto` takes the first kind that torch can use. ROCm's devices are called cuda, too.
_KINDS: Final = ("cuda", "xpu", "mps", "cpu")
_NAMES: Final = "auto, cpu, cuda, cuda:N, xpu, xpu:N or mps"
_NVIDIA: Final = Path("/proc/driver/nvidia")


@dataclass(frozen=True, slots=True)
class NvidiaDriver:
    """An NVIDIA driver on this machine: its version, None where it could not be read, and the models of its GPUs."""

    version: str | None = None
    gpus: tuple[str, ...] = ()

    @property
    def major(self) -> int | None:
        """The number by which drivers are compared, such as 580."""
        return int(self.version.partition(".")[0]) if self.version else None


@dataclass(frozen=True, slots=True)
class Hardware:
    """What torch can use: how many devices of each kind. Beside it, what is there and why torch cannot use it.

    `torch_cuda` is the CUDA version that torch was built for, None for a build without; `cuda_error` what torch says
    when it is asked for CUDA. `has_amd`: the kernel serves an AMD GPU.
    """

    counts: dict[str, int]
    torch_cuda: str | None = None
    cuda_error: str = ""
    nvidia: NvidiaDriver | None = None
    has_amd: bool = False


def choose_device(wanted: str = "auto", *, weights: Path | None = None) -> torch.device:
    """The one device to draw on. As `choose_devices`, of whose choice it is the first."""
    return choose_devices((wanted,), look_at_hardware(), _bytes_in(weights))[0]


def choose_server_devices(wanted: Sequence[str], weights: Path) -> tuple[torch.device, ...]:
    """The devices of a server over the model folder `weights`. As `choose_devices`; a GPU left unused is logged."""
    hardware = look_at_hardware()
    chosen = choose_devices(wanted, hardware, _bytes_in(weights))
    if chosen[0].type == "cpu" and tuple(wanted) == ("auto",) and (reason := why_unused(hardware)):
        log.warning("drawing on the CPU", extra={"reason": reason})
    return chosen


def choose_devices(wanted: Sequence[str], hardware: Hardware, weight_bytes: int = 0) -> tuple[torch.device, ...]:
    """The devices with these names, or, for `auto`, all of the fastest kind that torch can use.

    All of them are of one kind, since a picture should not depend on which of them draws it. `cpu` may be named more
    than once.

    Raises:
        ModelChoiceError: a name is unknown, twice there or not on this machine, or the kinds differ.
        ModelFolderError: `auto` found a GPU that torch cannot use, and the model is too large to put it on the CPU
            unasked.
    """
    if tuple(wanted) == ("auto",):
        kind = next(kind for kind in _KINDS if hardware.counts.get(kind))
        if kind == "cpu" and weight_bytes > _LARGEST_UNASKED and (reason := why_unused(hardware)):
            raise ModelFolderError(f"{reason} To draw on the CPU all the same, set SCHNELL_DEVICE=cpu (--device cpu)")
        return tuple(_numbered(kind, index) for index in range(hardware.counts[kind]))
    devices = tuple(_device_named(name, hardware) for name in wanted)
    if len({device.type for device in devices}) > 1:
        raise ModelChoiceError(f"the devices of one server must be of one kind, got {', '.join(wanted)}")
    accelerators = [device for device in devices if device.type != "cpu"]
    if len(set(accelerators)) < len(accelerators):
        raise ModelChoiceError(f"a device is named twice: {', '.join(wanted)}")
    return devices


def _device_named(name: str, hardware: Hardware) -> torch.device:
    kind, _, number = name.partition(":")
    if kind not in _KINDS or (number and not number.isdecimal()) or (number and kind in {"cpu", "mps"}):
        raise ModelChoiceError(f"device must be {_NAMES}, got {name!r}")
    count, index = hardware.counts.get(kind, 0), int(number or 0)
    if index >= count:
        found = f"sees {count} of them" if count else "sees none"
        reason = (why_unused(hardware) or "") if kind == "cuda" else ""
        raise ModelChoiceError(f"device {name} was asked for, but torch {found}. {reason}".strip())
    return _numbered(kind, index)


def _numbered(kind: str, index: int) -> torch.device:
    return torch.device(kind, index) if kind in {"cuda", "xpu"} else torch.device(kind)


def why_unused(hardware: Hardware) -> str | None:
    """Why torch does not use a GPU that is there, with the ways out, in sentences; None where there is nothing to tell.

    A GPU that `CUDA_VISIBLE_DEVICES` hides is not there.
    """
    if hardware.counts.get("cuda") or hardware.counts.get("xpu"):
        return None
    if hardware.nvidia is not None:
        return _why_not_nvidia(hardware, hardware.nvidia)
    if not hardware.has_amd:
        return None
    if hardware.torch_cuda is None:
        return "The AMD GPU cannot be used: this torch was built without ROCm. Install a build with it (pytorch.org)."
    return f"The AMD GPU cannot be used: {_first_line(hardware.cuda_error)}. `rocminfo` must find it first."


def _why_not_nvidia(hardware: Hardware, driver: NvidiaDriver) -> str:
    named = f"{', '.join(driver.gpus) or 'The NVIDIA GPU'} cannot be used"
    version = f"driver {driver.version}" if driver.version else "the driver"
    if hardware.torch_cuda is None:
        return f"{named}: this torch was built without CUDA. Install a build for {version} (pytorch.org)."
    major = int(hardware.torch_cuda.partition(".")[0])
    oldest = _OLDEST_DRIVERS.get(major)
    too_old = driver.major is not None and oldest is not None and driver.major < oldest
    if too_old or "driver on your system is too old" in hardware.cuda_error:
        needed = f"{oldest} or newer" if oldest else "a newer one"
        return (
            f"{named}: {version} is too old for this torch ({torch.__version__}, CUDA {hardware.torch_cuda}), which "
            f"needs {needed}. Either update the driver, or install a torch that was built for an older CUDA "
            f"({_cuda_for(driver)}; pytorch.org lists the builds)."
        )
    if "version mismatch" in hardware.cuda_error or "Error 803" in hardware.cuda_error:
        return f"{named}: parts of the driver are of different versions, as after an update. Restart the machine."
    said = _first_line(hardware.cuda_error)
    return f"{named} ({version}): {said}. `nvidia-smi` must work first, in the same container or session."


def _first_line(said: str) -> str:
    return said.partition("\n")[0].strip().rstrip(".") or "torch does not say why"


def _cuda_for(driver: NvidiaDriver) -> str:
    fitting = [cuda for cuda, oldest in _OLDEST_DRIVERS.items() if driver.major is not None and oldest <= driver.major]
    return f"CUDA {max(fitting)}" if fitting else "as old as the driver"


def look_at_hardware() -> Hardware:
    """What this machine has. Looks for a driver only where torch sees no GPU."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    counts = {
        "cuda": cuda,
        "xpu": torch.xpu.device_count() if torch.xpu.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if cuda:
        return Hardware(counts, torch.version.cuda)
    return Hardware(
        counts,
        torch_cuda=torch.version.cuda or torch.version.hip,
        cuda_error=" ".join(str(warning.message) for warning in said) or _ask_for_cuda(),
        nvidia=None if _is_hidden() else _find_nvidia(),
        has_amd=Path("/dev/kfd").exists(),
    )


def _ask_for_cuda() -> str:
    # torch warns only once in a process why there is no CUDA, but raises as often as it is asked to begin
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's own types leave it out
    except (RuntimeError, AssertionError) as error:
        return str(error)
    return ""


def _is_hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in {"", "-1", "NoDevFiles"}


def _find_nvidia() -> NvidiaDriver | None:
    try:
        return parse_kernel_module(
            (_NVIDIA / "version").read_text("utf-8", "replace"),
            [each.read_text("utf-8", "replace") for each in sorted(_NVIDIA.glob("gpus/*/information"))],
        )
    except OSError:
        return _ask_nvidia_smi()  # under WSL there is no such folder


def _ask_nvidia_smi() -> NvidiaDriver | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603 - no input
    except (OSError, subprocess.TimeoutExpired):
        return NvidiaDriver()
    return parse_nvidia_smi(done.stdout)


def parse_kernel_module(version: str, gpus: Sequence[str] = ()) -> NvidiaDriver:
    """The driver that `/proc/driver/nvidia/version` tells of, with the GPUs of `gpus/*/information`."""
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", version)
    models = (re.search(r"^Model:\s*(.+?)\s*$", text, re.MULTILINE) for text in gpus)
    return NvidiaDriver(found[1] if found else None, tuple(model[1] for model in models if model))


def parse_nvidia_smi(output: str) -> NvidiaDriver:
    """The driver and GPUs of `nvidia-smi --query-gpu=driver_version,name --format=csv,noheader`."""
    # where it fails it prints sentences in their place
    lines = [line.split(",", 1) for line in output.splitlines() if re.match(r"\d+(\.\d+)+\s*,", line)]
    return NvidiaDriver(lines[0][0].strip() if lines else None, tuple(name.strip() for _, name in lines))


def _bytes_in(weights: Path | None) -> int:
    if weights is None:
        return 0
    return sum(source.path.stat().st_size for part in NETWORKS for source in weight_sources(weights / part))


@lru_cache
def supports_bfloat16(device: torch.device) -> bool:
    """Whether an accelerator multiplies bfloat16: not Apple's before macOS 14, nor every older card."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported())
    try:
        one = torch.ones(1, 1, dtype=torch.bfloat16, device=device)
        return bool((one @ one).item() == 1)
    except (RuntimeError, TypeError):
        return False
