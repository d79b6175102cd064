"""FLUX.1 [schnell]'s transformer: noisy latents, a prompt and a noise level to the velocity that leads to the picture.

Parameters have the names of Black Forest Labs' single file; other names of the same weights are translated while
loading (`engine.weight_names`). Every product whose layers read one input is one: queries, keys and values (`qkv`), and
in single blocks these and the first feed-forward layer (`linear1`). One forward serves CPU and GPU, inference, training
and `torch.compile`; what differs between them is in `engine.flux_kernels`, a function each.

Source: the FLUX.1 model of Black Forest Labs; Esser et al., arXiv:2403.03206 (two streams); Dehghani et al.,
arXiv:2302.05442 (parallel blocks); Su et al., arXiv:2104.09864 (rotary positions).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from schnell.engine.flux_kernels import (
    NormScales,
    RotaryTables,
    attention,
    gelu,
    is_functional,
    modulated,
    norm_scales,
    normalised_and_turned,
    products_along_tokens,
    side_by_side,
)

#: Channels of the sinusoidal embedding of a noise level, and the number that a level from 0 to 1 is multiplied with.
_TIME_CHANNELS: Final = 256
_TIME_FACTOR: Final = 1000.0
_LONGEST_PERIOD: Final = 10_000


@dataclass(frozen=True, slots=True)
class FluxParams:
    """The network's sizes; the defaults are FLUX.1 [schnell]'s.

    `in_channels` and `out_channels` of a latent token, `vec_in_dim` of CLIP's pooled vector, `context_in_dim` of T5's
    states; `axes_dim` is how many of a head's channels turn with each of the three coordinates of a position.
    """

    in_channels: int = 64
    out_channels: int = 64
    vec_in_dim: int = 768
    context_in_dim: int = 4096
    hidden_size: int = 3072
    mlp_ratio: int = 4
    num_heads: int = 24
    depth: int = 19
    depth_single_blocks: int = 38
    axes_dim: tuple[int, ...] = (16, 56, 56)

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"a width of {self.hidden_size} cannot be split among {self.num_heads} heads")
        if sum(self.axes_dim) != self.head_dim:
            raise ValueError(f"positions turn {sum(self.axes_dim)} channels, but a head has {self.head_dim}")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        """Channels between the two feed-forward layers."""
        return self.hidden_size * self.mlp_ratio

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "FluxParams":
        """The sizes in the `config.json` of a diffusers folder's `transformer`."""
        heads = int(config["num_attention_heads"])
        channels = int(config["in_channels"])
        return cls(
            in_channels=channels,
            out_channels=int(config.get("out_channels") or channels),
            vec_in_dim=int(config["pooled_projection_dim"]),
            context_in_dim=int(config["joint_attention_dim"]),
            hidden_size=heads * int(config["attention_head_dim"]),
            num_heads=heads,
            depth=int(config["num_layers"]),
            depth_single_blocks=int(config["num_single_layers"]),
            axes_dim=tuple(int(each) for each in config.get("axes_dims_rope", (16, 56, 56))),
        )


class Flux(nn.Module):
    """The whole network. `checkpointing`: training keeps only each block's input, and computes the rest again."""

    def __init__(self, params: FluxParams) -> None:
        super().__init__()
        self.params, self.checkpointing = params, False
        width = params.hidden_size
        self.img_in = nn.Linear(params.in_channels, width)
        self.txt_in = nn.Linear(params.context_in_dim, width)
        self.time_in = MlpEmbedder(_TIME_CHANNELS, width)
        self.vector_in = MlpEmbedder(params.vec_in_dim, width)
        self.double_blocks = nn.ModuleList([DoubleBlock(params) for _ in range(params.depth)])
        self.single_blocks = nn.ModuleList([SingleBlock(params) for _ in range(params.depth_single_blocks)])
        self.final_layer = FinalLayer(params)
        self._rotary = RotaryTables(params.axes_dim)
        #: Runs a block: plainly, unless somebody compiles blocks (`engine.compiled_blocks`).
        self.run_block: Callable[..., Any] = run_plainly
        #: Gives each block's modulation before the first of them runs. Without it, each block makes its own.
        self.modulate: Callable[[Tensor], Sequence[Tensor]] | None = None

    def forward(self, img: Tensor, txt: Tensor, ids: Tensor, timesteps: Tensor, y: Tensor) -> Tensor:
        """The velocity (rows, image tokens, out channels), in the dtype of the weights.

        `img` (rows, image tokens, in channels) are latents, `txt` (rows, text tokens, T5 width) and `y` (rows, CLIP
        width) the prompt, `timesteps` (rows) noise levels from 0 to 1. `ids` (text and image tokens, 3) on the CPU are
        the positions in all rows, text first; their rotary angles are kept for as long as the same tensor comes again.

        Raises:
            ValueError: the inputs' shapes do not belong together.
        """
        self._check_shapes(img, txt, ids, y)
        rotation = self._rotary(ids, img.device)
        # every block's modulation begins with the same SiLU of the same vector (rows, width)
        signal = F.silu(self.time_in(timestep_embedding(timesteps, img.dtype)) + self.vector_in(y))
        signals = iter(self.modulate(signal)) if self.modulate else repeat(signal)
        img, txt = self.img_in(img), self.txt_in(txt)
        for block in self.double_blocks:
            img, txt = self._run(block, img, txt, next(signals), rotation)
        # single blocks see text and image as one sequence, text first
        joint = torch.cat([txt, img], dim=1)
        for block in self.single_blocks:
            joint = self._run(block, joint, next(signals), rotation)
        velocity: Tensor = self.final_layer(joint[:, txt.shape[1] :], signal)
        return velocity

    def _run(self, block: nn.Module, *inputs: Tensor) -> Any:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return self.run_block(block, *inputs)

    def _check_shapes(self, img: Tensor, txt: Tensor, ids: Tensor, y: Tensor) -> None:
        params = self.params
        for name, tensor, channels in (
            ("latents", img, params.in_channels),
            ("text states", txt, params.context_in_dim),
        ):
            if tensor.dim() != 3 or tensor.shape[-1] != channels:
                raise ValueError(f"{name} must be (rows, tokens, {channels}), not {tuple(tensor.shape)}")
        if y.shape != (len(img), params.vec_in_dim):
            raise ValueError(f"pooled vectors must be ({len(img)}, {params.vec_in_dim}), not {tuple(y.shape)}")
        if ids.shape != (txt.shape[1] + img.shape[1], len(params.axes_dim)):
            raise ValueError(f"positions must be one a token, text and image: {tuple(ids.shape)} are not")


class MlpEmbedder(nn.Module):
    """Two linear layers with a SiLU between: a vector a row to the width of the network."""

    def __init__(self, in_dim: int, width: int) -> None:
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(in_dim, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, in) to (rows, width)."""
        embedded: Tensor = self.out_layer(F.silu(self.in_layer(x)))
        return embedded


class Modulation(nn.Module):
    """Shift, scale and gate, each (rows, 1, width), `count` times, from the rows' vectors that are activated already.

    Scales come with their 1 added.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, 3 * count * width)
        self._count = count

    def forward(self, signal: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """One triple for each of the `count` places. What was made ahead of them (`Flux.modulate`) is handed out."""
        if is_made_ahead(signal):
            parts, scales = signal, signal[:, :, 1]
        else:
            parts = self.lin(signal).view(len(signal), self._count, 3, 1, -1)
            scales = parts[:, :, 1] + 1  # all at once: one pass, however many places
        return [(parts[:, place, 0], scales[:, place], parts[:, place, 2]) for place in range(self._count)]


def is_made_ahead(signal: Tensor) -> bool:
    """Whether this is a block's modulation (rows, places, 3, 1, width), and not the vector that it is made of."""
    return signal.dim() > 2


class RmsScale(nn.Module):
    """The weight of a norm by the root mean square over a head's channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))


class QKNorm(nn.Module):
    """The norms of queries and of keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_norm, self.key_norm = RmsScale(width), RmsScale(width)
        self._kept: tuple[tuple[Tensor, int], tuple[Tensor, int], NormScales] | None = None

    def scales(self) -> NormScales:
        """Both weights as `normalised_and_turned` wants them; kept in place runs, four launches a block on a GPU."""
        query, key = self.query_norm.scale, self.key_norm.scale
        # a tensor made in inference mode does not count its changes
        if is_functional() or query.is_inference() or key.is_inference():
            return norm_scales(query, key)
        kept, now = self._kept, ((query, query._version), (key, key._version))
        same = kept is not None and all(
            old[0] is new[0] and old[1] == new[1] for old, new in zip(kept[:2], now, strict=True)
        )
        if kept is None or not same:
            kept = self._kept = (*now, norm_scales(query, key))
        return kept[2]


class SelfAttention(nn.Module):
    """The layers around the joint attention that belong to one stream."""

    def __init__(self, params: FluxParams) -> None:
        super().__init__()
        width = params.hidden_size
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = QKNorm(params.head_dim)


def _feed_forward(params: FluxParams) -> nn.ModuleDict:
    # 1 is the GELU between them, which has no weights
    first, last = nn.Linear(params.hidden_size, params.mlp_size), nn.Linear(params.mlp_size, params.hidden_size)
    return nn.ModuleDict({"0": first, "2": last})


class DoubleBlock(nn.Module):
    """Text and image with weights of their own, and one attention over both."""

    def __init__(self, params: FluxParams) -> None:
        super().__init__()
        self._heads = params.num_heads
        self.img_mod, self.txt_mod = Modulation(params.hidden_size, 2), Modulation(params.hidden_size, 2)
        self.img_attn, self.txt_attn = SelfAttention(params), SelfAttention(params)
        self.img_mlp, self.txt_mlp = _feed_forward(params), _feed_forward(params)

    def forward(self, img: Tensor, txt: Tensor, signal: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams (rows, tokens, width), image first."""
        length = txt.shape[1]
        for_img, for_txt = torch.split(signal, 2, dim=1) if is_made_ahead(signal) else (signal, signal)
        of_img, of_txt = self.img_mod(for_img), self.txt_mod(for_txt)
        qkv = products_along_tokens(
            (self.txt_attn.qkv, modulated(txt, *of_txt[0][:2])), (self.img_attn.qkv, modulated(img, *of_img[0][:2]))
        )
        # text and image have norms of their own, but are normalised and turned in one pass
        heads = _split_heads(qkv, self._heads)
        scales = [(length, self.txt_attn.norm.scales()), (img.shape[1], self.img_attn.norm.scales())]
        query, key = normalised_and_turned(heads[:2], scales, rotation)
        mixed = _join_heads(attention(query, key, heads[2]))
        txt = torch.addcmul(txt, of_txt[0][2], self.txt_attn.proj(mixed[:, :length].contiguous()))
        img = torch.addcmul(img, of_img[0][2], self.img_attn.proj(mixed[:, length:].contiguous()))
        return _fed_forward(self.img_mlp, img, of_img[1]), _fed_forward(self.txt_mlp, txt, of_txt[1])


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side, over text and image as one sequence."""

    def __init__(self, params: FluxParams) -> None:
        super().__init__()
        self._heads, self._width, width = params.num_heads, params.hidden_size, params.hidden_size
        self.modulation = Modulation(width, 1)
        self.linear1 = nn.Linear(width, 3 * width + params.mlp_size)
        self.linear2 = nn.Linear(width + params.mlp_size, width)
        self.norm = QKNorm(params.head_dim)

    def forward(self, x: Tensor, signal: Tensor, rotation: Tensor) -> Tensor:
        """(rows, text and image tokens, width) to the same."""
        [(shift, scale, gate)] = self.modulation(signal)
        projected = self.linear1(modulated(x, shift, scale))
        qkv, hidden = projected[..., : 3 * self._width], projected[..., 3 * self._width :]
        heads = _split_heads(qkv, self._heads)
        query, key = normalised_and_turned(heads[:2], [(x.shape[1], self.norm.scales())], rotation)
        mixed = attention(query, key, heads[2])
        if is_functional():
            joined = side_by_side(_join_heads(mixed), gelu(hidden, into=hidden))
        else:
            # attention and GELU each write their part of `linear2`'s input, so that nothing is concatenated
            joined = x.new_empty(*x.shape[:2], self.linear2.in_features)
            joined[..., : self._width].view(*x.shape[:2], self._heads, -1).copy_(mixed.transpose(1, 2))
            gelu(hidden, into=joined[..., self._width :])
        return torch.addcmul(x, gate, self.linear2(joined))


class FinalLayer(nn.Module):
    """The last norm, modulated, and the way back to a latent token's channels."""

    def __init__(self, params: FluxParams) -> None:
        super().__init__()
        width = params.hidden_size
        self.linear = nn.Linear(width, params.out_channels)
        # 0 is the SiLU that the signal has behind it already
        self.adaLN_modulation = nn.ModuleDict({"1": nn.Linear(width, 2 * width)})

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:
        """(rows, tokens, width) to (rows, tokens, out channels)."""
        shift, scale = self.adaLN_modulation["1"](signal).unsqueeze(1).chunk(2, dim=-1)
        velocity: Tensor = self.linear(modulated(x, shift, scale + 1))
        return velocity


def timestep_embedding(timesteps: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows, 256) in `dtype`: cosines, then sines, of a noise level from 0 to 1 at periods that grow to 10,000.

    The level is rounded to `dtype` before, as in the reference implementations, and the waves are made in float32.
    """
    half = _TIME_CHANNELS // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    periods = torch.exp(exponents.mul(-math.log(_LONGEST_PERIOD)) / half)
    angles = (timesteps.to(dtype) * _TIME_FACTOR).float()[:, None] * periods
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)


def run_plainly(block: nn.Module, *inputs: Tensor) -> Any:
    """`Flux.run_block` where nobody compiles blocks."""
    return block(*inputs)


def _fed_forward(mlp: Any, x: Tensor, modulation: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    shift, scale, gate = modulation
    hidden = mlp["0"](modulated(x, shift, scale))
    # over itself: nobody else holds the layer's output
    return torch.addcmul(x, gate, mlp["2"](gelu(hidden, into=hidden)))


def _split_heads(qkv: Tensor, heads: int) -> Tensor:
    """(rows, tokens, 3*width) to queries, keys and values (3, rows, heads, tokens, head width), a view."""
    return qkv.view(*qkv.shape[:-1], 3, heads, -1).permute(2, 0, 3, 1, 4)


def _join_heads(mixed: Tensor) -> Tensor:
    """(rows, heads, tokens, head width) to (rows, tokens, width)."""
    return mixed.transpose(1, 2).flatten(2)


#: What predicts a velocity: a `Flux`, or another network behind the same five arguments.
VelocityNetwork = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
