"""Tensors of a network out of the files that it lies in, one at a time and memory-mapped.

Nothing is read before it is asked for, and what has been used is not kept: loading a network takes no more host memory
than the tensor that is on its way.
"""

from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from schnell.errors import ModelFolderError
from schnell.models.folder import weight_files


def component_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every name and tensor in the weight files of a component's folder, on the CPU, as they are stored.

    Raises:
        ModelFolderError: there are none, or they are damaged.
    """
    files = weight_files(folder)
    if not files:
        raise ModelFolderError(f"{folder} holds no .safetensors file")
    for path in files:
        yield from safetensors_file(path)


def safetensors_file(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Every name and tensor in a safetensors file."""
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            yield name, file.get_tensor(name)
