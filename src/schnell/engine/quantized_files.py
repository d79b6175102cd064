"""Quantized networks kept on disk, so that a second start reads 12 GB instead of 24 and quantizes nothing."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from schnell.engine.quantized import FORMAT_VERSION

log = logging.getLogger(__name__)

#: A file of a kept network: what is written is copied to host memory a file at a time.
_FILE_BYTES: Final = 1 << 30
#: Room that must be left on the disk.
_SPARE_BYTES: Final = 2 << 30


class QuantizedFiles:
    """Networks in stored form below one folder, each in a folder of its own that is named by all that decided it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def key(self, weights_sha256: str, description: str, dtype: torch.dtype) -> str:
        """The name of a network: of the hash of its weights, of how each layer is stored, and of our format."""
        decided_by = [FORMAT_VERSION, weights_sha256, description, str(dtype)]
        return hashlib.sha256(json.dumps(decided_by).encode()).hexdigest()

    def read(self, key: str) -> Iterator[tuple[str, Tensor]] | None:
        """A kept network's tensors by name, one at a time as they are read; None if it is not kept."""
        files = sorted((self._folder / key).glob("*.safetensors"))
        return self._tensors(files) if files else None

    def _tensors(self, files: list[Path]) -> Iterator[tuple[str, Tensor]]:
        for path in files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping: it has `keys` alone
                    yield name, file.get_tensor(name)

    def write(self, key: str, network: nn.Module) -> None:
        """Keep a network. One that cannot be written (a full disk, a read-only home) costs a slower start, no more."""
        partial = self._folder / f"{key}.{os.getpid()}"
        try:
            partial.mkdir(parents=True)
            if shutil.disk_usage(partial).free < _bytes_of(network) + _SPARE_BYTES:
                log.warning("quantized weights are not kept: too little room in %s", self._folder)
            else:
                for number, tensors in enumerate(_files_of(network)):
                    save_file(tensors, partial / f"{number:04}.safetensors")
                # written aside and renamed: a start that is cut off leaves no half of a network under its name
                partial.rename(self._folder / key)
        except (OSError, SafetensorError) as error:
            log.warning("quantized weights are not kept: %s", error)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def remove(self, key: str) -> None:
        """Forget a network whose files turned out damaged."""
        shutil.rmtree(self._folder / key, ignore_errors=True)


def _bytes_of(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def _files_of(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        tensors[name] = tensor.cpu().contiguous()
        if sum(each.nbytes for each in tensors.values()) >= _FILE_BYTES:
            yield tensors
            tensors = {}
    if tensors:
        yield tensors
