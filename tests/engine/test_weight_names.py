import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flux_folder import write_flux_folder
from schnell.engine.device import FLOAT32
from schnell.engine.flux import Flux, FluxParams
from schnell.engine.loading import fill_network, load_network
from schnell.engine.weight_names import diffusers_names, layer_rows, read_diffusers_folder
from schnell.errors import ModelFolderError

CPU = torch.device("cpu")
SHAPES = {"bias": (2,), "weight": (2, 2)}


def test_every_parameter_of_the_true_model_has_its_tensors_and_every_tensor_its_parameter() -> None:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        ours = {name: tuple(each.shape) for name, each in Flux(FluxParams()).named_parameters()}
        theirs = {name: tuple(each.shape) for name, each in FluxTransformer2DModel().named_parameters()}
    used = [piece for name in ours for piece in diffusers_names(name)]
    assert sorted(used) == sorted(theirs)
    for name, shape in ours.items():
        pieces = [theirs[piece] for piece in diffusers_names(name)]
        assert (sum(piece[0] for piece in pieces), *pieces[0][1:]) == shape, name


def test_rows_of_a_fused_layer_are_diffusers_layers_in_order() -> None:
    rows = layer_rows("single_blocks.7.linear1", 70)
    block = "single_transformer_blocks.7"
    names = [f"{block}.attn.to_q", f"{block}.attn.to_k", f"{block}.attn.to_v", f"{block}.proj_mlp"]
    assert [(each.module, each.start, each.stop) for each in rows] == [
        (name, start, stop) for name, start, stop in zip(names, (0, 10, 20, 30), (10, 20, 30, 70), strict=True)
    ]
    assert layer_rows("final_layer.adaLN_modulation.1", 8)[0].turned


def shard(folder: Path, count: int) -> None:
    """Spread a folder's one weight file over `count`, so that parts of a fused layer lie in different ones."""
    [whole] = folder.glob("*.safetensors")
    tensors = list(load_file(whole).items())
    whole.unlink()
    for index in range(count):
        save_file(dict(tensors[index::count]), folder / f"part-{index}-of-{count}.safetensors")


def test_a_sharded_folder_is_the_same_network(tmp_path: Path) -> None:
    folder = write_flux_folder(tmp_path / "whole")
    whole = load_network(folder, "transformer", FLOAT32, CPU).state_dict()
    shard(folder / "transformer", 3)
    parts = load_network(folder, "transformer", FLOAT32, CPU).state_dict()
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_missing_unknown_or_misshapen_tensor_is_named(tmp_path: Path) -> None:
    folder = write_flux_folder(tmp_path / "lacking") / "transformer"
    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: each for name, each in tensors.items() if "attn.to_k.weight" not in name}, file)
    with pytest.raises(ModelFolderError, match=r"lacks the tensor transformer_blocks.0.attn.to_k.weight, a part of"):
        load_network(folder.parent, "transformer", FLOAT32, CPU)
    save_file(tensors | {"x_embedder.bias": torch.zeros(3)}, file)
    with pytest.raises(ModelFolderError, match=r"img_in.bias is \(3,\) in the file, and must be \(32,\)"):
        load_network(folder.parent, "transformer", FLOAT32, CPU)
    with torch.device("meta"):
        layer = nn.ModuleDict({"a": nn.Linear(2, 2)})
    with pytest.raises(ModelFolderError, match="no place for the tensor b"):
        fill_network(layer, [("b", torch.zeros(2))], torch.float32, CPU)
    with pytest.raises(ModelFolderError, match=r"lack 2 tensors, a\.bias among them"):
        fill_network(layer, [], torch.float32, CPU)


def test_a_layer_may_take_another_form_as_soon_as_it_is_read() -> None:
    class Other(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.weights = base.weight

    with torch.device("meta"):
        network = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    tensors = [(f"{layer}.{kind}", torch.ones(shape)) for layer in "ab" for kind, shape in SHAPES.items()]
    seen: list[str] = []

    def form(path: str, layer: nn.Linear) -> nn.Module | None:
        seen.append(path)
        assert not any(each.is_meta for each in layer.parameters())
        return Other(layer) if path == "a" else None

    fill_network(network, tensors, torch.bfloat16, CPU, form)
    assert seen == ["a", "b"]
    assert isinstance(network["a"], Other)
    assert network["b"].weight.dtype == torch.bfloat16


MEASURE = """
import resource, sys
from pathlib import Path
from schnell.engine.weight_names import read_diffusers_folder

folder = Path(sys.argv[1])
names = [f"single_blocks.{i}.linear1.weight" for i in range(8)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = sum(tensor.nbytes for _, tensor in read_diffusers_folder(folder, names))
print(total, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_reading_a_sharded_folder_takes_memory_for_about_one_shard(tmp_path: Path) -> None:
    """Eight shards of 56 MB, each with one block, and none of the tensors kept: as where they go to a GPU."""
    for index in range(8):
        stem, tensors = f"single_transformer_blocks.{index}", {}
        for name, out in (("attn.to_q", 2048), ("attn.to_k", 2048), ("attn.to_v", 2048), ("proj_mlp", 8192)):
            tensors[f"{stem}.{name}.weight"] = torch.ones(out, 2048, dtype=torch.bfloat16)
        save_file(tensors, tmp_path / f"part-{index}.safetensors")
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total, peak = map(int, done.stdout.split())
    one = total // 8
    # the shard's mapped pages, the joined tensor, and the one before it, which the loop still holds: not all eight
    assert peak <= 5 * one, f"{peak / 1e6:.0f} MB for shards of {one / 1e6:.0f} MB"


def test_nothing_is_read_before_it_is_wanted(tmp_path: Path) -> None:
    folder = write_flux_folder(tmp_path / "lazy") / "transformer"
    stream = read_diffusers_folder(folder, ["img_in.bias", "img_in.weight"])
    assert next(stream)[0] == "img_in.bias"
