"""Which arithmetic a request runs in."""

from dataclasses import dataclass
from typing import Final

import torch

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Precision:
    """The number format of weights and activations. Latents are float32 between steps whatever it is."""

    name: str

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of weights and activations."""
        return _DTYPES[self.name]


FLOAT32: Final = Precision("float32")
BFLOAT16: Final = Precision("bfloat16")


def choose_precision(device: torch.device, *, go_fast: bool) -> Precision:
    """The precision a request runs in.

    On a CPU: bfloat16 for `go_fast` where the processor multiplies bfloat16 natively (AMX, AVX512-BF16), float32
    otherwise. On a GPU: bfloat16.
    """
    if device.type == "cpu":
        return BFLOAT16 if go_fast and has_native_bfloat16() else FLOAT32
    return BFLOAT16


def has_native_bfloat16() -> bool:
    """Whether this processor has bfloat16 matrix products in hardware; emulated ones are slower than float32."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
