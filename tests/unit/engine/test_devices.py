from pathlib import Path

import pytest
import torch

from schnell.engine.devices import (
    Hardware,
    NvidiaDriver,
    choose_devices,
    parse_kernel_module,
    parse_nvidia_smi,
    supports_bfloat16,
    why_unused,
)
from schnell.errors import ModelFolderError
from schnell.models.folder import NETWORKS

CLOSED = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""
OPEN = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder@U16-I3)
GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)
"""
GPU = """Model: \t\t NVIDIA GeForce RTX 4090
IRQ:   \t\t 152
GPU UUID: \t GPU-6c9a3d0e-0000-0000-0000-000000000000
Bus Location: \t 0000:01:00.0
"""
TOO_OLD = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020). Please update your GPU "
    "driver by downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx "
    "Alternatively, go to: https://pytorch.org to install a PyTorch version that has been compiled with your version "
    "of the CUDA driver. (Triggered internally at /pytorch/c10/cuda/CUDAFunctions.cpp:109.)"
)
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.54\n"
NO_CONTACT = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
    "driver is installed and running.\n"
)
OLD = NvidiaDriver("535.183.01", ("NVIDIA GeForce RTX 4090",))
LARGE = 34 << 30


def machine(cuda: int = 0, xpu: int = 0, mps: int = 0, cpu: int = 1, **found: object) -> Hardware:
    return Hardware({"cuda": cuda, "xpu": xpu, "mps": mps, "cpu": cpu}, **found)  # type: ignore[arg-type]


def chosen(*wanted: str, on: Hardware) -> list[str]:
    return [str(device) for device in choose_devices(wanted, on)]


def test_auto_takes_all_devices_of_the_fastest_kind() -> None:
    assert chosen("auto", on=machine(cuda=2, xpu=1, mps=1)) == ["cuda:0", "cuda:1"]
    assert chosen("auto", on=machine(xpu=2, mps=1)) == ["xpu:0", "xpu:1"]
    assert chosen("auto", on=machine(mps=1)) == ["mps"]
    assert chosen("auto", on=machine()) == ["cpu"]


def test_named_devices_are_taken_as_they_are_named() -> None:
    assert chosen("cuda:1", "cuda:0", on=machine(cuda=2)) == ["cuda:1", "cuda:0"]
    assert chosen("cuda", on=machine(cuda=2)) == ["cuda:0"]
    assert chosen("cpu", "cpu", on=machine(cuda=2)) == ["cpu", "cpu"]


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        (("gpu",), "must be auto, cpu, cuda, cuda:N"),
        (("cuda:one",), "must be"),
        (("cpu:1",), "must be"),
        (("cuda:2",), "cuda:2 was asked for, but torch sees 2"),
        (("mps",), "sees none"),
        (("cuda:0", "cpu"), "one kind"),
        (("cuda:0", "cuda"), "twice"),
        (("auto", "cuda:1"), "must be"),
    ],
)
def test_a_device_that_cannot_be_taken_is_named(wanted: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ModelFolderError, match=complaint):
        choose_devices(wanted, machine(cuda=2))


def test_versions_and_models_are_read_where_the_driver_writes_them() -> None:
    assert parse_kernel_module(CLOSED, [GPU]) == OLD
    assert parse_kernel_module(OPEN).major == 570
    assert parse_kernel_module("something else") == NvidiaDriver()
    assert parse_nvidia_smi("535.183.01, NVIDIA GeForce RTX 4090\n535.183.01, NVIDIA A100-SXM4-80GB\n") == NvidiaDriver(
        "535.183.01", ("NVIDIA GeForce RTX 4090", "NVIDIA A100-SXM4-80GB")
    )


@pytest.mark.parametrize("failure", [MISMATCH, NO_CONTACT, ""])
def test_what_nvidia_smi_says_in_place_of_an_answer_is_no_driver_version(failure: str) -> None:
    assert parse_nvidia_smi(failure) == NvidiaDriver()


def test_an_old_driver_is_named_with_both_ways_out() -> None:
    told = why_unused(machine(torch_cuda="13.0", cuda_error=TOO_OLD, nvidia=OLD))
    assert told is not None
    for part in ("RTX 4090", "535.183.01", "CUDA 13.0", "580 or newer", "update the driver", "built for an older CUDA"):
        assert part in told
    assert "CUDA 12;" in told


@pytest.mark.parametrize(
    ("found", "part"),
    [
        # torch warns once in a process only: the version alone must do
        ({"torch_cuda": "13.0", "nvidia": OLD}, "too old"),
        ({"torch_cuda": "13.0", "cuda_error": TOO_OLD, "nvidia": NvidiaDriver()}, "the driver is too old"),
        ({"torch_cuda": "12.6", "cuda_error": MISMATCH, "nvidia": OLD}, "Restart the machine"),
        (
            {"torch_cuda": "12.6", "cuda_error": "No CUDA GPUs are available", "nvidia": OLD},
            "No CUDA GPUs are available",
        ),
        ({"torch_cuda": "12.6", "nvidia": NvidiaDriver()}, "torch does not say why"),
        ({"torch_cuda": None, "nvidia": OLD}, "built without CUDA"),
        ({"torch_cuda": None, "has_amd": True}, "without ROCm"),
        ({"torch_cuda": "6.4", "cuda_error": "No HIP GPUs are available", "has_amd": True}, "No HIP GPUs"),
    ],
)
def test_every_other_reason_is_told_in_a_sentence(found: dict[str, object], part: str) -> None:
    told = why_unused(machine(**found))  # type: ignore[arg-type]
    assert told is not None
    assert part in told


def test_nothing_is_told_where_there_is_no_gpu_or_torch_uses_it() -> None:
    assert why_unused(machine(torch_cuda="13.0", cuda_error="Found no NVIDIA driver on your system")) is None
    assert why_unused(machine(cuda=1, torch_cuda="13.0")) is None


def test_a_large_model_is_not_put_on_the_cpu_in_place_of_a_gpu_unless_that_is_asked_for() -> None:
    found = machine(torch_cuda="13.0", cuda_error=TOO_OLD, nvidia=OLD)
    with pytest.raises(ModelFolderError, match=r"too old.*SCHNELL_DEVICE=cpu"):
        choose_devices(("auto",), found, LARGE)
    assert choose_devices(("cpu",), found, LARGE) == (torch.device("cpu"),)
    assert choose_devices(("auto",), found, 40 << 20) == (torch.device("cpu"),)
    assert choose_devices(("auto",), machine(), LARGE) == (torch.device("cpu"),)
    with pytest.raises(ModelFolderError, match="too old"):
        choose_devices(("cuda",), found)


def test_whether_bfloat16_works_is_tried() -> None:
    assert supports_bfloat16(torch.device("cpu"))
    assert not supports_bfloat16(torch.device("mps"))


def test_weights_are_counted_by_what_lies_on_disk(tmp_path: Path) -> None:
    from schnell.engine.devices import _bytes_in

    for part in NETWORKS:
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "readme.md").write_bytes(b"12345")
    assert (_bytes_in(tmp_path), _bytes_in(None)) == (5 * len(NETWORKS), 0)
