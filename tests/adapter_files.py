"""Random adapters for tests, in the canonical form and as explicit deltas."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from schnell.adapters import CanonicalInfo
from schnell.engine.slot_linear import SlotPart, slot_parts
from schnell.spec import AdapterUse


def adapter_layers(network: nn.Module) -> dict[str, SlotPart | nn.Linear]:
    """Every layer that a LoRA may target, by the name that it has in diffusers or transformers."""
    plain = {path: layer for path, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    return {**slot_parts(network)} or {**plain}


def write_canonical(path: Path, tensors: dict[str, Tensor], *, rank: int, width: int | None = None) -> AdapterUse:
    """A canonical adapter file holding these tensors, ready to use at scale 1."""
    modules = {name.rpartition(".")[0] for name in tensors}
    info = CanonicalInfo(
        source_sha256="0" * 64,
        layout="test",
        made_for="test",
        rank=rank,
        width=width,
        modules={"transformer": len(modules)},
        forms={"LoRA": len(modules)},
    )
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=info.to_metadata())
    return AdapterUse(name=path.stem, sha256=path.stem, path=path, scale=1.0)


def random_adapter(
    path: Path,
    network: nn.Module,
    *,
    rank: int = 4,
    seed: int = 0,
    strength: float = 0.3,
    component: str = "transformer",
) -> AdapterUse:
    """A low-rank adapter on every linear layer of a network."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, layer in adapter_layers(network).items():
        out, into = layer.out_features, layer.in_features
        tensors[f"{component}.{name}.lora_A"] = torch.randn(rank, into, generator=generator) * into**-0.5
        tensors[f"{component}.{name}.lora_B"] = torch.randn(out, rank, generator=generator) * strength * rank**-0.5
    return write_canonical(path, tensors, rank=rank)


def random_adapters(folder: Path, network: nn.Module, ranks: Iterable[int]) -> list[AdapterUse]:
    """One adapter a rank, all different."""
    return [
        random_adapter(folder / f"lora-{i}.safetensors", network, rank=rank, seed=i) for i, rank in enumerate(ranks)
    ]
