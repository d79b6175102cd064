"""Where networks run, and in which number format."""

from dataclasses import dataclass
from typing import Final

import torch

from schnell.errors import ModelFolderError

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Precision:
    """The number format of weights and activations, `float32` or `bfloat16`. Latents between steps are float32."""

    name: str

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of weights and activations."""
        return _DTYPES[self.name]


FLOAT32: Final = Precision("float32")
BFLOAT16: Final = Precision("bfloat16")


def choose_precision(device: torch.device, *, go_fast: bool) -> Precision:
    """The precision that a request runs in.

    On a CPU: bfloat16 for `go_fast` where the processor multiplies bfloat16 natively (AMX, AVX512-BF16), float32
    otherwise. On a GPU: bfloat16, the format that FLUX.1's weights are published in.
    """
    # without native products bfloat16 would be slower than float32: a request for speed then runs in float32
    if device.type == "cpu":
        return BFLOAT16 if go_fast and has_native_bfloat16() else FLOAT32
    return BFLOAT16


def has_native_bfloat16() -> bool:
    """Whether this processor has bfloat16 matrix products in hardware."""
    # torch has no public question for either
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def choose_device(wanted: str = "auto") -> torch.device:
    """The device to draw on: `auto` takes a GPU if torch sees one; or a torch device name such as `cuda:1`.

    Raises:
        ModelFolderError: the device is unknown, or not on this machine.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ModelFolderError(f"device must be auto, cpu, cuda or cuda:N, got {wanted!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelFolderError(f"device {wanted} was asked for, but torch sees no GPU")
    return device
