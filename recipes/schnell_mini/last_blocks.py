"""The last two single blocks with a LoRA on their feed-forward parts, trained on what reaches them.

Everything before them is frozen, and no LoRA acts there. So what a block hears is computed once, and training repeats
only what comes after it: a few small products a token, a hundredth of the whole network. What a token's
neighbours show comes from the frozen attention of the block before the last; the last one has none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from schnell.engine.denoise import Drawing, predict_velocity
from schnell.engine.flux import Flux
from schnell.engine.flux_kernels import NORM_EPS
from schnell_mini import layout
from schnell_mini.drawing_blocks import writable_channels

#: diffusers' and our names of the layers that a bundled LoRA has factors for, in each of the two blocks.
LAYERS = ("proj_mlp", "proj_out")


@dataclass(frozen=True)
class BlockInputs:
    """What reaches the block before the last, and what the base draws from it.

    `tokens` `[N, T, 256]`, `attention` `[N, T, 256]` (the heads' outputs), `modulations` `[N, 3, 256]` (shift, scale
    and gate), `clean` `[N, T, 64]`: the clean latents that the base's velocity points to.
    """

    tokens: Tensor
    attention: Tensor
    modulations: Tensor
    clean: Tensor


def bundled_layers(transformer: Flux) -> str:
    """A regular expression for the layers, by the paths that diffusers gives them (`install_low_rank`)."""
    count = len(transformer.single_blocks)
    return rf"single_transformer_blocks\.({count - 2}|{count - 1})\.({'|'.join(LAYERS)})"


@torch.inference_mode()
def record_inputs(transformer: Flux, drawings: Sequence[Drawing], batch: int = 8) -> BlockInputs:
    """Run the frozen network on drawings of one grid, and keep what its last blocks hear."""
    parts: list[tuple[Tensor, ...]] = []
    block: Any = transformer.single_blocks[-2]
    width, tokens = transformer.params.hidden_size, len(drawings[0].latents)
    caught: dict[str, Tensor] = {}

    def keep_tokens(module: Any, inputs: tuple[Tensor, ...]) -> None:
        caught["tokens"] = inputs[0][:, -tokens:].clone()
        caught["modulations"] = torch.stack([part[:, 0] for part in module.modulation(inputs[1])[0]], 1)

    def keep_attention(_module: Any, inputs: tuple[Tensor, ...]) -> None:
        caught["attention"] = inputs[0][:, -tokens:, :width].clone()

    hooks = [block.register_forward_pre_hook(keep_tokens), block.linear2.register_forward_pre_hook(keep_attention)]
    for start in range(0, len(drawings), batch):
        some = drawings[start : start + batch]
        velocity = predict_velocity(transformer, some)
        noisy = torch.stack([drawing.latents for drawing in some])
        levels = torch.tensor([drawing.sigmas[drawing.step] for drawing in some]).to(noisy)
        clean = noisy - levels[:, None, None] * velocity
        parts.append((caught["tokens"], caught["attention"], caught["modulations"], clean))
    for hook in hooks:
        hook.remove()
    with torch.inference_mode(mode=False):  # ordinary tensors, which autograd takes
        return BlockInputs(*(torch.cat(some).clone() for some in zip(*parts, strict=True)))


class LastBlocks(nn.Module):
    """The two blocks and the last layer, frozen, and the factors of a LoRA on four of their layers.

    Factors do not read intermediate results of the position weights, nor the noisy latents, as drawing blocks do not:
    so the look is the same at every noise level, and pure noise is all there is to learn from. They write only where
    drawing blocks may (`writable_channels`). What the last layer adds up is linear in the tokens: instead of a
    velocity, the change of the clean latents is computed.
    """

    reads: Tensor
    writes: Tensor

    def __init__(self, transformer: Flux, rank: int) -> None:
        super().__init__()
        self.width = transformer.params.hidden_size
        first = len(transformer.single_blocks) - 2
        blocks: list[Any] = list(transformer.single_blocks)[-2:]
        self.layers = [(copy_mlp(block.linear1, 3 * self.width), copy_mlp(block.linear2, 0)) for block in blocks]
        final: Any = transformer.final_layer
        self.last = final.linear.weight.detach().float().clone()
        self.factors = nn.ParameterDict()
        for number, (inner, outer) in enumerate(self.layers, first):
            for name, (weight, _) in zip(LAYERS, (inner, outer), strict=True):
                start = torch.empty(rank, weight.shape[1])
                nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=torch.Generator().manual_seed(number))
                self.factors[f"{number}-{name}-A"] = nn.Parameter(start)
                self.factors[f"{number}-{name}-B"] = nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.numbers = (first, first + 1)
        reads, writes = torch.ones(self.width), writable_channels(self.width)
        reads[layout.SCRATCH : layout.ZERO] = 0.0
        reads[layout.NOISE] = 0.0
        writes[layout.SCRATCH :] = 0.0
        self.register_buffer("reads", reads, persistent=False)
        self.register_buffer("writes", writes[:, None], persistent=False)
        self.to(self.last.device)

    def pair(self, number: int, layer: str) -> tuple[Tensor, Tensor]:
        """A layer's factors A and B as they act, masked."""
        a, b = self.factors[f"{number}-{layer}-A"], self.factors[f"{number}-{layer}-B"]
        return (a * self.reads, b) if layer == "proj_mlp" else (a, b * self.writes)

    @torch.no_grad()
    def write_factors(self, factors: Mapping[str, Tensor]) -> None:
        """Take over the factors of a file that `read_factors` made."""
        for number in self.numbers:
            for layer in LAYERS:
                for side in "AB":
                    name = f"transformer.single_transformer_blocks.{number}.{layer}.lora_{side}.weight"
                    self.factors[f"{number}-{layer}-{side}"].copy_(factors[name])

    def read_factors(self) -> dict[str, Tensor]:
        """The factors by the names that they have in a file."""
        found = {}
        for number in self.numbers:
            for layer in LAYERS:
                for side, factor in zip("AB", self.pair(number, layer), strict=True):
                    name = f"transformer.single_transformer_blocks.{number}.{layer}.lora_{side}.weight"
                    found[name] = factor.detach().cpu().clone()
        return found

    def forward(self, inputs: BlockInputs, scale: float) -> Tensor:
        """The clean latents `[N, 64]` with the LoRA at `scale`, for single tokens (every field without its `T`)."""
        tokens = inputs.tokens.float()
        shift, stretch, gate = inputs.modulations.float().unbind(1)
        before, last = self.numbers
        plain, changed = self.run(before, normed(tokens) * stretch + shift, inputs.attention, scale)
        base, drawn = tokens + gate * plain, tokens + gate * (plain + changed)
        silent = torch.zeros_like(inputs.attention)
        # by itself the last block adds nothing
        _, added = self.run(last, normed(drawn), silent, scale, frozen_part=False)
        change = functional.linear(normed(base) - normed(drawn + added), self.last)
        return inputs.clean + change.float()

    def run(
        self, number: int, heard: Tensor, attention: Tensor, scale: float, *, frozen_part: bool = True
    ) -> tuple[Tensor, Tensor]:
        """What a block adds by itself (0 unless `frozen_part`), and what its LoRA changes that by: `[N, 256]` both."""
        (inner, inner_bias), (outer, outer_bias) = self.layers[self.numbers.index(number)]
        linear = functional.linear(heard, inner, inner_bias)
        hidden = gelu(linear + scale * low_rank(heard, self.pair(number, "proj_mlp")))
        joined = torch.cat([attention.to(hidden), hidden], 1)
        changed = scale * low_rank(joined, self.pair(number, "proj_out")).float()
        if not frozen_part:
            return torch.zeros_like(changed), changed
        with torch.no_grad():
            untouched = torch.cat([attention.to(linear), gelu(linear)], 1)
            plain = functional.linear(untouched, outer, outer_bias).float()
        return plain, changed + functional.linear(joined - untouched, outer).float()


def copy_mlp(layer: nn.Linear, first: int) -> tuple[Tensor, Tensor]:
    """A layer's weight and bias from output `first` on, in float32."""
    return layer.weight.detach().float()[first:].clone(), layer.bias.detach().float()[first:].clone()


def low_rank(x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
    """B(A(x))."""
    return functional.linear(functional.linear(x, pair[0]), pair[1])


def gelu(x: Tensor) -> Tensor:
    """FLUX's activation."""
    return functional.gelu(x, approximate="tanh")


def normed(tokens: Tensor) -> Tensor:
    """A token less its mean, by its standard deviation, in float32."""
    return functional.layer_norm(tokens.float(), tokens.shape[-1:], eps=NORM_EPS)
