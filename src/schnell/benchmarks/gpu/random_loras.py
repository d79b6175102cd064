"""Random LoRAs at the network's size: canonical files for our engine, and the same factors for diffusers with peft."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from schnell.adapters import CanonicalInfo
from schnell.benchmarks.gpu.lab import Lab
from schnell.spec import AdapterUse

Kind = Literal["LoRA", "DoRA", "LoKr"]
SCALE: Final = 0.8
#: The standard deviation of the up factors: small beside weights of variance one over the inputs.
_UP_SPREAD: Final = 0.002


@dataclass(frozen=True, slots=True)
class RandomLora:
    """One LoRA: how our engine uses it, and its factors on the CPU under canonical names."""

    use: AdapterUse
    tensors: dict[str, Tensor]

    def for_peft(self) -> dict[str, Tensor]:
        """The factors under PEFT's names, which differ from the canonical ones in their last word alone."""
        return {f"{name}.weight": tensor for name, tensor in self.tensors.items()}


def make_lora(lab: Lab, name: str, rank: int, kind: Kind = "LoRA", seed: int = 0) -> RandomLora:
    """A LoRA on every attention and feed-forward layer of the blocks, written to the lab's folder in bfloat16."""
    generator = torch.Generator(lab.device).manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for layer, (out, into) in lab.shape.linear_layers().items():
        parts = _factors(out, into, rank, kind, generator)
        tensors |= {f"transformer.{layer}.{part}": tensor.bfloat16().cpu() for part, tensor in parts.items()}
    path = lab.folder / f"{name}.safetensors"
    layers = len(lab.shape.linear_layers())
    info = CanonicalInfo(
        source_sha256="0" * 64,
        layout="random",
        made_for="FLUX.1",
        rank=rank,
        width=lab.shape.width,
        modules={"transformer": layers},
        forms={kind: layers},
    )
    save_file(tensors, path, metadata=info.to_metadata())
    return RandomLora(AdapterUse(name, name, path, SCALE), tensors)


def make_loras(lab: Lab, ranks: Iterable[int]) -> list[RandomLora]:
    """One LoRA a rank, all different."""
    return [make_lora(lab, f"lora-{index}-{rank}", rank, seed=index) for index, rank in enumerate(ranks)]


def under_other_names(loras: Sequence[RandomLora], count: int) -> list[AdapterUse]:
    """So many LoRAs to the engine, which knows them by their hash: the given ones in turns, each time as another."""
    chosen = [loras[index % len(loras)].use for index in range(count)]
    return [AdapterUse(f"{use.name}-{i}", f"{use.sha256}-{i}", use.path, use.scale) for i, use in enumerate(chosen)]


def _factors(out: int, into: int, rank: int, kind: Kind, generator: torch.Generator) -> dict[str, Tensor]:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=generator.device, generator=generator)

    if kind == "LoKr":
        return {"lokr_w1": random(4, 4) * _UP_SPREAD, "lokr_w2": random(out // 4, into // 4) * into**-0.5}
    parts: dict[str, Any] = {"lora_A": random(rank, into) * into**-0.5, "lora_B": random(out, rank) * _UP_SPREAD}
    if kind == "DoRA":
        # about the length of the random weights' rows, so that the gain is close to 1
        parts["dora_magnitude"] = 1 + 0.01 * random(out)
    return parts
