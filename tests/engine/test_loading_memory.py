"""Loading a network takes little more of the host's memory than the part that is on its way to the device."""

import ctypes
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

import checkpoint_files as files
from schnell.engine.checkpoint_files import source_tensors
from schnell.engine.device import FLOAT32
from schnell.engine.loading import load_network
from schnell.models.weight_files import WeightSource, weight_sources

MIB = 2**20


def own_bytes() -> int:
    """Memory that this process wrote to; mapped files, which the system may drop at any time, are not in it."""
    # what was freed and is kept for later is not in use
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


class Peak:
    """The most memory that was there at any of the moments that it looked, over what there was at first."""

    def __init__(self) -> None:
        gc.collect()
        self._before, self.bytes = own_bytes(), 0

    def look(self, *_: Any) -> None:
        self.bytes = max(self.bytes, own_bytes() - self._before)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer of 78 million numbers in shards of 20 MB."""
    folder = tmp_path_factory.mktemp("model")
    config: dict[str, Any] = {"in_channels": 64, "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 64}
    config |= {"num_attention_heads": 12, "joint_attention_dim": 64, "pooled_projection_dim": 64}
    stock = FluxTransformer2DModel(**config, axes_dims_rope=(8, 28, 28)).to(torch.bfloat16)
    stock.save_pretrained(folder / "transformer", max_shard_size="20MB")
    return folder


def test_a_sharded_folder_is_never_in_memory_as_a_whole(sharded: Path) -> None:
    shards = [source.path.stat().st_size for source in weight_sources(sharded / "transformer")]
    peak = Peak()

    def exchange(_: str, __: nn.Linear) -> nn.Module:
        peak.look()
        return nn.Identity()  # which holds nothing of the host's, as a layer on a card does

    load_network(sharded, "transformer", FLOAT32, torch.device("cpu"), form=exchange)
    assert len(shards) > 5
    assert peak.bytes < max(shards) + 20 * MIB < sum(shards) / 3


@pytest.fixture(params=["safetensors", "fp8 with scales", "GGUF"])
def large_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """30 tensors of 4 MiB in float32."""
    tensors = {f"layer.{index}.weight": torch.randn(1024, 1024) for index in range(30)}
    if request.param == "GGUF":
        return files.write_gguf(tmp_path / "file", tensors, "Q8_0")
    return files.write(tmp_path / "file", files.to_fp8(tensors, scaled=True) if "fp8" in request.param else tensors)


def test_a_file_is_read_tensor_by_tensor(large_file: Path) -> None:
    peak = Peak()
    for _ in source_tensors(WeightSource(large_file)):
        peak.look()
    # all of them would be 120 MiB
    assert peak.bytes < 40 * MIB
