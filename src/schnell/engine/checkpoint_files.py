"""Tensors of a network out of the files that it lies in, one at a time and memory-mapped, in ordinary number formats.

Nothing is read before it is asked for, and nothing is kept: whoever does not keep the tensors either needs memory for
the largest of them alone. fp8 weights are multiplied with the scales that lie beside them, GGUF's blocks are unpacked
by the `gguf` package's own arithmetic.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from schnell.models.checkpoint_header import CheckpointHeader, TensorInfo, read_checkpoint_header
from schnell.models.checkpoint_parts import SCALES, is_beside_weights
from schnell.models.network_tensors import t5_name
from schnell.models.weight_files import WeightSource, weight_sources

_FP8: Final = (torch.float8_e4m3fn, torch.float8_e5m2)
_PLAIN: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: Numbers that one thread unpacks at once: their blocks and what comes of them stay in the processor's caches.
_PIECE: Final = 1 << 20


def component_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every name and tensor of a model's component, on the CPU, in float32, float16, bfloat16 or as it is stored.

    Names are those of the file, without the prefix that a checkpoint of several networks has; a T5's of a GGUF file are
    transformers'.

    Raises:
        ModelFolderError: a file is missing or damaged.
    """
    seen = set[str]()
    for source in weight_sources(folder):
        for name, tensor in source_tensors(source):
            # T5's embedding lies in some files under both of its names
            if (known := t5_name(name)) not in seen:
                seen.add(known)
                yield known, tensor


def source_tensors(source: WeightSource) -> Iterator[tuple[str, Tensor]]:
    """Every name (after the source's prefix) and tensor of a file that are weights."""
    with source.path.open("rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    return _gguf_tensors(source) if is_gguf else _safetensors(source)


def _safetensors(source: WeightSource) -> Iterator[tuple[str, Tensor]]:
    with safe_open(source.path, framework="pt", device="cpu") as file:
        present = set(file.keys())
        for name in file.keys():  # noqa: SIM118 - no mapping
            if not name.startswith(source.prefix) or is_beside_weights(name):
                continue
            tensor = file.get_tensor(name)
            if tensor.dtype in _FP8:
                layer = name.removesuffix(".weight")
                scales = [file.get_tensor(layer + suffix) for suffix in SCALES if layer + suffix in present]
                tensor = _unscale(tensor, scales)
            yield name.removeprefix(source.prefix), tensor


def _unscale(tensor: Tensor, scales: list[Tensor]) -> Tensor:
    if not scales:
        return tensor.to(torch.bfloat16)  # which has every fp8 number
    scale = scales[0].float()
    # one factor for all, or one for each row
    return tensor.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale)


def _gguf_tensors(source: WeightSource) -> Iterator[tuple[str, Tensor]]:
    header: CheckpointHeader = read_checkpoint_header(source.path)
    # copy on write: torch warns of memory that it may not write to, and nobody writes
    data = np.memmap(source.path, mode="c", dtype=np.uint8)
    for name, info in header.tensors.items():
        if name.startswith(source.prefix) and not is_beside_weights(name):
            yield name.removeprefix(source.prefix), unpack(data[info.start : info.stop], info)


def unpack(data: NDArray[np.uint8], info: TensorInfo) -> Tensor:
    """One tensor of a GGUF file from its bytes: as it is stored, or in float32 where it is stored in blocks."""
    if info.dtype in _PLAIN:
        return torch.from_numpy(data).view(_PLAIN[info.dtype]).view(info.shape)
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[info.dtype]
    block, block_bytes = GGML_QUANT_SIZES[kind]
    unpacked = torch.empty(prod(info.shape), dtype=torch.float32)
    blocks, step = data.reshape(-1, block_bytes), _PIECE // block

    def unpack_piece(first: int) -> None:
        piece: Any = dequantize(blocks[first : first + step], kind)
        unpacked[first * block : first * block + piece.size] = torch.from_numpy(piece.reshape(-1))

    # numpy lets other threads run while it computes
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(unpack_piece, range(0, len(blocks), step)))
    return unpacked.view(info.shape)
