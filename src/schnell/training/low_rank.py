"""The model that a LoRA is trained for, and the trainable low-rank factors in its transformer.

Source: LoRA, Hu et al., arXiv:2106.09685.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.device import Precision, choose_precision
from schnell.engine.flux import Flux
from schnell.engine.loading import load_network
from schnell.engine.weight_names import LayerRows, layer_rows
from schnell.errors import TrainingError, TrainingOptionError
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
    """The model on this device: bfloat16 on GPUs and on processors that multiply it faster, float32 on others."""
    return BaseModel(folder, choose_precision(device, go_fast=True), device)


#: Every attention and feed-forward linear of double and single blocks, by its path in diffusers.
TARGETS: Final = re.compile(
    r"(transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|transformer_blocks\.\d+\.(ff|ff_context)\.net\.(0\.proj|2)"
    r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out))"
)


class LowRankFactors(nn.Module):
    """A LoRA's factors A [rank, in] and B [out, rank] in float32, for the outputs `rows` of a layer.

    B starts at zero: fresh factors change nothing. The delta is B @ A at scale 1 (alpha equals rank).
    """

    def __init__(self, in_features: int, rows: LayerRows, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        start = torch.empty(rank, in_features)
        # as torch initialises a linear layer, and PEFT the factor A
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        self.a = nn.Parameter(start)
        self.b = nn.Parameter(torch.zeros(rows.stop - rows.start, rank))
        self.rows, self.scale = rows, 1.0
        self._units: tuple[Tensor, Tensor] | None = None

    def set_units(self, inputs: Tensor, outputs: Tensor) -> None:
        """Let `a` and `b` count in other units (`preconditioning`): for each input and for each output channel."""
        self._units = inputs.to(self.a), outputs.to(self.b)[:, None]

    @property
    def plain(self) -> tuple[Tensor, Tensor]:
        """The factors A and B as they act."""
        return (self.a, self.b) if self._units is None else (self.a * self._units[0], self.b * self._units[1])

    def set_plain(self, a: Tensor, b: Tensor) -> None:
        """Set the factors so that they act as these."""
        with torch.no_grad():
            inputs, outputs = self._units or (1.0, 1.0)
            self.a.copy_(a.to(self.a) / inputs)
            self.b.copy_(b.to(self.b) / outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`scale * B(A(x))`: (..., in) to (..., outputs of these rows), in the dtype of `x`."""
        a, b = self.plain
        return self.scale * F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))


class LowRankLinear(nn.Module):
    """A frozen linear layer, plus the factors of those of its parts that are trained."""

    def __init__(self, base: nn.Linear, parts: Sequence[LowRankFactors]) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.parts = nn.ModuleList(parts)

    def factors(self) -> Iterator[LowRankFactors]:
        """The factors of its parts."""
        for part in self.parts:
            assert isinstance(part, LowRankFactors)  # noqa: S101 - for the type checker: made above
            yield part

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in the dtype of `x`."""
        y: Tensor = self.base(x)
        pieces, at = [], 0
        for part in self.factors():
            if not part.scale:
                continue  # exactly the base model, whatever the factors are: 0 times infinity is not a number
            start, stop = part.rows.start, part.rows.stop
            pieces += [y[..., at:start], y[..., start:stop] + part(x)]
            at = stop
        pieces = [piece for piece in [*pieces, y[..., at:]] if piece.shape[-1]]
        return torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]


#: The factors under training, by the paths that diffusers gives their layers.
LowRankLayers = Mapping[str, LowRankFactors]


def install_low_rank(transformer: Flux, rank: int, seed: int, only: str | None = None) -> dict[str, LowRankFactors]:
    """Give every target layer of the transformer trainable factors; returns them by the layers' paths in diffusers.

    `only` is a regular expression that these paths must match in whole; None takes all of `TARGETS`.

    Raises:
        TrainingOptionError: the layers are narrower than `rank`.
        TrainingError: the transformer has no such layers.
    """
    wanted = re.compile(only or ".*")
    # on the CPU, so that a seed starts with the same factors on every device
    generator = torch.Generator("cpu").manual_seed(seed)
    installed: dict[str, LowRankFactors] = {}
    for path, module in list(transformer.named_modules()):
        if type(module) is not nn.Linear:
            continue
        rows = [each for each in layer_rows(path, module.out_features) if TARGETS.fullmatch(each.module)]
        rows = [each for each in rows if wanted.fullmatch(each.module)]
        for each in rows:
            _check_rank(rank, module.in_features, each)
            factors = LowRankFactors(module.in_features, each, rank, generator)
            installed[each.module] = factors.to(module.weight.device)
        if rows:
            parent, _, name = path.rpartition(".")
            layer = LowRankLinear(module, [installed[each.module] for each in rows])
            transformer.get_submodule(parent).register_module(name, layer)
    if not installed:
        chosen = f" that match {only!r}" if only else ""
        raise TrainingError(f"this model's transformer has none of FLUX's attention and feed-forward layers{chosen}")
    return installed


def _check_rank(rank: int, in_features: int, rows: LayerRows) -> None:
    narrowest = min(in_features, rows.stop - rows.start)
    if not 1 <= rank <= narrowest:
        raise TrainingOptionError(f"--rank must be 1-{narrowest} for this model, got {rank}")


def set_scale(layers: LowRankLayers, scale: float) -> None:
    """Set the scale of every layer; 0 is exactly the base model."""
    for layer in layers.values():
        layer.scale = scale


def read_factors(layers: LowRankLayers) -> dict[str, Tensor]:
    """Copies of the factors in float32 on the CPU, under the names that diffusers and PEFT give them in a file."""
    return {
        f"transformer.{path}.{name}.weight": factor.detach().float().cpu().clone()
        for path, layer in layers.items()
        for name, factor in zip(("lora_A", "lora_B"), layer.plain, strict=True)
    }


def write_factors(layers: LowRankLayers, factors: Mapping[str, Tensor]) -> None:
    """Set the factors to values with the names of `read_factors`."""
    for path, layer in layers.items():
        layer.set_plain(*(factors[f"transformer.{path}.{name}.weight"] for name in ("lora_A", "lora_B")))
