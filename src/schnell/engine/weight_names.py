"""The two namings of FLUX's weights: Black Forest Labs', which `engine.flux` has, and diffusers'.

They differ in three ways: names; layers that read one input, which are one layer here and several there; and the final
layer's modulation, which holds (shift, scale) here and (scale, shift) there. Which rows of our layers are which of
diffusers' layers stands in one table, `adapters.names`: weights are joined by it, and LoRAs, which name diffusers'
layers, find their rows by it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from schnell.adapters.names import find_destination
from schnell.errors import ModelFolderError
from schnell.models.weight_files import weight_sources

_NORMS: Final = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}
_NORM: Final = re.compile(r"^(double|single)_blocks\.(\d+)\.(.*norm)\.scale$")
_TOKEN_LAYER: Final = re.compile(r"^(double|single)_blocks\.\d+\.(?!img_mod|txt_mod|modulation)")
_FAMILIES: Final = {"double": "transformer_blocks", "single": "single_transformer_blocks"}


@dataclass(frozen=True, slots=True)
class LayerRows:
    """The rows `start` to `stop` of one of our layers: all outputs of diffusers' layer `module`.

    `turned`: its first and its second half have changed places.
    """

    module: str
    start: int
    stop: int
    turned: bool = False


def is_of_tokens(layer: str) -> bool:
    """Whether one of our layers multiplies every token of a block, and not one vector a row, as modulation does."""
    return _TOKEN_LAYER.match(layer) is not None


def layer_rows(layer: str, out_features: int) -> tuple[LayerRows, ...]:
    """The diffusers layers that one of our linear layers consists of, in the order of its rows.

    Raises:
        ModelFolderError: FLUX has no such layer.
    """
    found = find_destination(layer, "transformer")
    if found is None:
        raise ModelFolderError(f"FLUX.1 has no layer {layer}")
    height = out_features // found.row_blocks
    rows = []
    for part in found.parts:
        blocks = part.blocks
        turned = blocks != tuple(sorted(blocks))
        rows.append(LayerRows(part.module, min(blocks)[0] * height, max(blocks)[1] * height, turned))
    return tuple(sorted(rows, key=lambda each: each.start))


def diffusers_names(name: str) -> tuple[str, ...]:
    """The tensors in a diffusers folder that make up our parameter `name`, in the order in which they are joined.

    Raises:
        ModelFolderError: FLUX has no such parameter.
    """
    if match := _NORM.match(name):
        family, index, norm = match.groups()
        return (f"{_FAMILIES[family]}.{index}.{_NORMS[norm]}.weight",)
    layer, _, kind = name.rpartition(".")
    return tuple(f"{rows.module}.{kind}" for rows in layer_rows(layer, 1 << 20))


def join_tensors(name: str, pieces: Sequence[Tensor]) -> Tensor:
    """Our parameter `name` out of diffusers' tensors, in the order of `diffusers_names`."""
    layer = name.rpartition(".")[0]
    if len(pieces) > 1:
        return torch.cat(list(pieces))
    [whole] = pieces
    is_norm = _NORM.match(name) is not None
    return _turn(whole) if not is_norm and layer_rows(layer, len(whole))[0].turned else whole


def _turn(tensor: Tensor) -> Tensor:
    return tensor.roll(len(tensor) // 2, 0)


def read_diffusers_folder(folder: Path, wanted: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Our parameters `wanted`, one by one, out of a diffusers `transformer` folder, sharded or not.

    A shard is opened when its first tensor is wanted and let go with its last, and nothing is kept here once it was
    handed over: so whoever does not keep the tensors either needs memory for about one shard.

    Raises:
        ModelFolderError: a tensor is missing.
    """
    shard_of = _find_tensors(source.path for source in weight_sources(folder))
    sources = {name: diffusers_names(name) for name in wanted}
    for name, pieces in sources.items():
        for piece in pieces:
            if piece not in shard_of:
                raise ModelFolderError(f"{folder} lacks the tensor {piece}, a part of {name}")
    # shard by shard, so that few are open at once, whatever order they were written in
    order = sorted(sources, key=lambda name: max(shard_of[piece] for piece in sources[name]))
    last_use = {shard_of[piece]: place for place, name in enumerate(order) for piece in sources[name]}
    shards = _OpenShards()
    for place, name in enumerate(order):
        yield name, join_tensors(name, [shards.read(shard_of[piece], piece) for piece in sources[name]])
        shards.close(shard for shard in tuple(shards.files) if last_use[shard] == place)


def _find_tensors(shards: Iterable[Path]) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), shard)
    return found


class _OpenShards:
    """Mapped shard files by path."""

    def __init__(self) -> None:
        self.files: dict[Path, Any] = {}

    def read(self, shard: Path, name: str) -> Tensor:
        """One tensor of a shard; a view of the file, of which the pages that are used are read."""
        if shard not in self.files:
            self.files[shard] = safe_open(shard, framework="pt")
        tensor: Tensor = self.files[shard].get_tensor(name)
        return tensor

    def close(self, shards: Iterable[Path]) -> None:
        """Let go of these files."""
        for shard in shards:
            del self.files[shard]
