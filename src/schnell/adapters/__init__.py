"""LoRA files of every layout, understood or refused, and the canonical form that the engine reads. Without torch."""

from schnell.adapters.canonical import CanonicalAdapter, CanonicalInfo, check_fits, read_adapter, read_info
from schnell.adapters.convert import DEFAULT_MAX_BYTES, ConvertedAdapter, convert_adapter, hash_source
from schnell.adapters.forms import Dora, Form, Lokr, LowRank
from schnell.adapters.inspect import AdapterReport, inspect_adapter
from schnell.adapters.shape import FLUX_1, EncoderShape, LinearSize, ModelShape, read_model_shape

__all__ = [
    "DEFAULT_MAX_BYTES",
    "FLUX_1",
    "AdapterReport",
    "CanonicalAdapter",
    "CanonicalInfo",
    "ConvertedAdapter",
    "Dora",
    "EncoderShape",
    "Form",
    "LinearSize",
    "Lokr",
    "LowRank",
    "ModelShape",
    "check_fits",
    "convert_adapter",
    "hash_source",
    "inspect_adapter",
    "read_adapter",
    "read_info",
    "read_model_shape",
]
