"""The model that a LoRA is trained for, and the trainable low-rank factors in its transformer.

Source: LoRA, Hu et al., arXiv:2106.09685.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.device import Precision, choose_precision
from schnell.engine.loading import load_network
from schnell.errors import TrainingError
from schnell.models.folder import ModelFolder, weights_sha256


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The frozen model that a LoRA is trained for: its folder, and the precision and device that it runs in."""

    folder: ModelFolder
    precision: Precision
    device: torch.device

    @property
    def sha256(self) -> str:
        """The SHA-256 of the transformer's weights."""
        return weights_sha256(self.folder.path)

    def load(self, part: str) -> Any:
        """Load one network, frozen: `transformer`, `vae`, `text_encoder` (CLIP) or `text_encoder_2` (T5).

        Raises:
            ModelFolderError: its weights are missing or do not fit its configuration.
        """
        return load_network(self.folder.path, part, self.precision, self.device)


def place_model(folder: ModelFolder, device: torch.device) -> BaseModel:
    """The model on this device: bfloat16 on GPUs and on processors that multiply it natively, float32 on others."""
    return BaseModel(folder, choose_precision(device, go_fast=True), device)


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
        # as torch initialises a linear layer, and PEFT the factor A
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
            return y  # exactly the base model, whatever the factors are: 0 times infinity is not a number
        return y + self.scale * F.linear(F.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))


LowRankLayers = Mapping[str, LowRankLinear]


def install_low_rank(transformer: nn.Module, rank: int, seed: int, only: str | None = None) -> dict[str, LowRankLinear]:
    """Replace every target layer of the transformer by a `LowRankLinear` around it; returns these by module path.

    `only` is a regular expression that module paths must match in whole; None takes all of `TARGETS`.

    Raises:
        TrainingError: the transformer has no such layers, or they are narrower than `rank`.
    """
    wanted = re.compile(only or ".*")
    # on the CPU, so that a seed starts with the same factors on every device
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
    """Set the scale of every layer; 0 is exactly the base model."""
    for layer in layers.values():
        layer.scale = scale


def read_factors(layers: LowRankLayers) -> dict[str, Tensor]:
    """Copies of the factors in float32 on the CPU, under the names that diffusers and PEFT give them in a file."""
    return {
        f"transformer.{path}.{name}.weight": factor.detach().float().cpu().clone()
        for path, layer in layers.items()
        for name, factor in (("lora_A", layer.a), ("lora_B", layer.b))
    }


def write_factors(layers: LowRankLayers, factors: Mapping[str, Tensor]) -> None:
    """Set the factors to values with the names of `read_factors`."""
    with torch.no_grad():
        for path, layer in layers.items():
            layer.a.copy_(factors[f"transformer.{path}.lora_A.weight"])
            layer.b.copy_(factors[f"transformer.{path}.lora_B.weight"])
