"""Where networks run, and in which number format."""

from dataclasses import dataclass
from typing import Final

import torch

from schnell.engine.devices import supports_bfloat16

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
    otherwise. On a GPU: bfloat16, the format that FLUX.1's weights are published in, or float32 where it has none.
    """
    # without native products bfloat16 would be slower than float32: a request for speed then runs in float32
    if device.type == "cpu":
        return BFLOAT16 if go_fast and has_native_bfloat16() else FLOAT32
    return BFLOAT16 if supports_bfloat16(device) else FLOAT32


def has_native_bfloat16() -> bool:
    """Whether this processor has bfloat16 matrix products in hardware."""
    # torch has no public question for either
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
