"""Trainable low-rank factors beside the frozen linear layers of a FLUX transformer.

Source: LoRA, Hu et al., arXiv:2106.09685.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.device import Precision, choose_precision
from schnell.engine.loading import load_network
from schnell.errors import TrainingError
from schnell.models.folder import ModelFolder, weights_sha256

#: Every attention and feed-forward linear of double and single blocks, by its path in diffusers.
TARGETS: Final = re.compile(
    r"(transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|transformer_blocks\.\d+\.(ff|ff_context)\.net\.(0\.proj|2)"
    r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out))"
)


class LowRankLinear(nn.Module):
    """A frozen linear layer plus `scale * B(A(x))`, with A [rank, in] and B [out, rank] in float32.

    B starts at zero: a fresh layer changes nothing. The delta is B @ A at scale 1 (alpha equals rank).
    """

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        start = torch.empty(rank, base.in_features)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        device = base.weight.device
        self.base = base
        self.a = nn.Parameter(start.to(device))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the dtype of `x`."""
        y: Tensor = self.base(x)
        if not self.scale:
            return y
        return y + self.scale * F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))


LowRankLayers = Mapping[str, LowRankLinear]


def install_low_rank(transformer: nn.Module, rank: int, seed: int, only: str | None = None) -> dict[str, LowRankLinear]:
    """Put a `LowRankLinear` in the place of every target layer; gives them by module path.

    `only` is a regular expression that narrows the targets.

    Raises:
        TrainingError: the transformer has no such layers, or they are narrower than `rank`.
    """
    wanted = re.compile(only or ".*")
    generator = torch.Generator("cpu").manual_seed(seed)
    installed: dict[str, LowRankLinear] = {}
    for path, module in list(transformer.named_modules()):
        if type(module) is nn.Linear and TARGETS.fullmatch(path) and wanted.fullmatch(path):
            _check_rank(rank, module)
            installed[path] = LowRankLinear(module, rank, generator)
            parent, _, name = path.rpartition(".")
            setattr(transformer.get_submodule(parent), name, installed[path])
    if not installed:
        chosen = f" that match {only!r}" if only else ""
        raise TrainingError(f"this model's transformer has none of FLUX's attention and feed-forward layers{chosen}")
    return installed


def _check_rank(rank: int, layer: nn.Linear) -> None:
    narrowest = min(layer.in_features, layer.out_features)
    if not 1 <= rank <= narrowest:
        raise TrainingError(f"--rank must be 1-{narrowest} for this model, got {rank}")


def set_scale(layers: LowRankLayers, scale: float) -> None:
    """Make every layer act with this strength; 0 is exactly the base model."""
    for layer in layers.values():
        layer.scale = scale


def read_factors(layers: LowRankLayers) -> dict[str, Tensor]:
    """The factors as they stand, on the CPU, named as diffusers and PEFT name them in a file."""
    return {
        f"transformer.{path}.{name}.weight": factor.detach().float().cpu().clone()
        for path, layer in layers.items()
        for name, factor in (("lora_A", layer.a), ("lora_B", layer.b))
    }


def read_lora_file(path: Path) -> dict[str, Tensor]:
    """The factors of a file that `schnell train lora` has written."""
    return load_file(path)


def write_factors(layers: LowRankLayers, factors: Mapping[str, Tensor]) -> None:
    """Put factors read by `read_factors` back."""
    with torch.no_grad():
        for path, layer in layers.items():
            layer.a.copy_(factors[f"transformer.{path}.lora_A.weight"])
            layer.b.copy_(factors[f"transformer.{path}.lora_B.weight"])


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The model that a LoRA is trained for: where it lies, and in which precision and where it runs."""

    folder: ModelFolder
    precision: Precision
    device: torch.device

    @property
    def sha256(self) -> str:
        """The hash of the transformer's weights."""
        return weights_sha256(self.folder.path)

    def load(self, part: str) -> Any:
        """One of its networks, frozen: `transformer`, `vae`, `text_encoder` or `text_encoder_2`."""
        return load_network(self.folder.path, part, self.precision, self.device)


def place_model(folder: ModelFolder, device: torch.device) -> BaseModel:
    """The model as it is trained on this device: bfloat16 where that is native, float32 elsewhere."""
    return BaseModel(folder, choose_precision(device, go_fast=True), device)
