"""LoRA files of every layout, converted or refused, and the canonical file that the engine reads. Without torch.

A file passes `tensors` (the container), `keys` and `names` (which layer a key means), `source` (modules and shapes),
`fit` (whether the model has them), `factors` (the numbers) and `canonical`. `convert` runs all of it, `inspect` the
part that needs no weights.
"""

from schnell.adapters.canonical import CanonicalAdapter, CanonicalInfo, check_fits, read_adapter, read_info
from schnell.adapters.convert import DEFAULT_MAX_BYTES, ConvertedAdapter, convert_adapter
from schnell.adapters.forms import Dora, Form, Lokr, LowRank
from schnell.adapters.inspect import AdapterReport, inspect_adapter
from schnell.adapters.shape import FLUX_1, ModelShape, read_model_shape

__all__ = [
    "DEFAULT_MAX_BYTES",
    "FLUX_1",
    "AdapterReport",
    "CanonicalAdapter",
    "CanonicalInfo",
    "ConvertedAdapter",
    "Dora",
    "Form",
    "Lokr",
    "LowRank",
    "ModelShape",
    "check_fits",
    "convert_adapter",
    "inspect_adapter",
    "read_adapter",
    "read_info",
    "read_model_shape",
]
