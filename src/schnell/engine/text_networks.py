"""FLUX's two text encoders, CLIP's and T5's, for inference. Parameters have the names that transformers gives them.

Why not transformers' own: its modules take two seconds to import, much of a cold start, for what are two plain stacks
of layers. Tests hold these against transformers' networks. Sources: Radford et al., arXiv:2103.00020 (CLIP); Raffel et
al., arXiv:1910.10683, and Shazeer, arXiv:2002.05202 (T5 with gated units).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ACTIVATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class ClipText(nn.Module):
    """CLIP's text encoder: token ids (rows, tokens) to one pooled vector (rows, width).

    `config` is the `config.json` of a diffusers folder's `text_encoder`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": _embedding(config["vocab_size"], width),
                "position_embedding": _embedding(config["max_position_embeddings"], width),
            }
        )
        layers = [_ClipLayer(config) for _ in range(config["num_hidden_layers"])]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.final_layer_norm = nn.LayerNorm(width, eps=epsilon)
        self._eos = config["eos_token_id"]

    def forward(self, ids: Tensor) -> Tensor:
        """The last state (rows, width) at each row's end-of-text token."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        states = self.embeddings["token_embedding"](ids) + self.embeddings["position_embedding"](positions)
        layers: Any = self.encoder["layers"]
        for layer in layers:
            states = layer(states)
        states = self.final_layer_norm(states)
        # CLIP's first configurations name 2 as the end of text where they mean the largest id
        ends = ids.argmax(-1) if self._eos == 2 else (ids == self._eos).int().argmax(-1)
        pooled: Tensor = states[torch.arange(len(ids), device=ids.device), ends]
        return pooled


class _ClipLayer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.self_attn = nn.ModuleDict({f"{part}_proj": nn.Linear(width, width) for part in ("q", "k", "v", "out")})
        self.mlp = nn.ModuleDict(
            {
                "fc1": nn.Linear(width, config["intermediate_size"]),
                "fc2": nn.Linear(config["intermediate_size"], width),
            }
        )
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps=epsilon), nn.LayerNorm(width, eps=epsilon)
        self._heads, self._activate = config["num_attention_heads"], _ACTIVATIONS[config["hidden_act"]]

    def forward(self, x: Tensor) -> Tensor:
        normed, attn = self.layer_norm1(x), self.self_attn
        query, key, value = (_split_heads(attn[f"{part}_proj"](normed), self._heads) for part in ("q", "k", "v"))
        x = x + attn["out_proj"](_join_heads(F.scaled_dot_product_attention(query, key, value, is_causal=True)))
        hidden = self._activate(self.mlp["fc1"](self.layer_norm2(x)))
        out: Tensor = x + self.mlp["fc2"](hidden)
        return out


class T5Encoder(nn.Module):
    """T5's encoder: token ids (rows, tokens) to states (rows, tokens, width).

    Padding is attended to: FLUX was trained without a mask. `config` is the `config.json` of `text_encoder_2`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.shared = _embedding(config["vocab_size"], config["d_model"])
        blocks = [_T5Block(config, has_bias=index == 0) for index in range(config["num_layers"])]
        norm = T5Norm(config["d_model"], config["layer_norm_epsilon"])
        self.encoder = nn.ModuleDict({"block": nn.ModuleList(blocks), "final_layer_norm": norm})
        self._buckets = config["relative_attention_num_buckets"]
        self._farthest = config.get("relative_attention_max_distance", 128)

    def forward(self, ids: Tensor) -> Tensor:
        """The state (rows, tokens, width) of every token."""
        blocks: Any = self.encoder["block"]
        states = self.shared(ids)
        buckets = distance_buckets(ids.shape[1], self._buckets, self._farthest).to(ids.device)
        table = blocks[0].layer[0].SelfAttention["relative_attention_bias"]
        # the first block's table of position biases serves all blocks: (1, heads, tokens, tokens)
        # contiguous: fused attention refuses a mask whose last dimension has a stride, and falls back to a slow form
        bias = table(buckets).permute(2, 0, 1).unsqueeze(0).contiguous()
        for block in blocks:
            states = block(states, bias)
        final: Tensor = self.encoder["final_layer_norm"](states)
        return final


class T5Norm(nn.Module):
    """A norm by the root mean square, without an offset."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., width), normalised, in the weight's dtype."""
        # the squares are summed in float32, as transformers does: bfloat16 has too few digits for a sum of thousands
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self._epsilon)
        normed: Tensor = self.weight * (x * scale).to(self.weight.dtype)
        return normed


class _T5Attention(nn.Module):
    def __init__(self, config: Mapping[str, Any], *, has_bias: bool) -> None:
        super().__init__()
        inner = config["num_heads"] * config["d_kv"]
        layers: dict[str, nn.Module] = {part: nn.Linear(config["d_model"], inner, bias=False) for part in "qkv"}
        layers["o"] = nn.Linear(inner, config["d_model"], bias=False)
        if has_bias:
            layers["relative_attention_bias"] = _embedding(
                config["relative_attention_num_buckets"], config["num_heads"]
            )
        self.SelfAttention = nn.ModuleDict(layers)
        self.layer_norm = T5Norm(config["d_model"], config["layer_norm_epsilon"])
        self._heads = config["num_heads"]

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        normed, attn = self.layer_norm(x), self.SelfAttention
        query, key, value = (_split_heads(attn[part](normed), self._heads) for part in "qkv")
        # scale 1: T5 was trained without dividing by the square root of the head's width
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype), scale=1.0)
        out: Tensor = x + attn["o"](_join_heads(mixed))
        return out


class _T5FeedForward(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        gate, _, activation = config["feed_forward_proj"].rpartition("-")
        names = ("wi_0", "wi_1") if gate else ("wi",)
        layers = {name: nn.Linear(config["d_model"], config["d_ff"], bias=False) for name in names}
        self.DenseReluDense = nn.ModuleDict({**layers, "wo": nn.Linear(config["d_ff"], config["d_model"], bias=False)})
        self.layer_norm = T5Norm(config["d_model"], config["layer_norm_epsilon"])
        self._is_gated = bool(gate)
        # transformers reads "gated-gelu" as GELU's tanh form
        self._activate = _ACTIVATIONS["gelu_new" if gate and activation == "gelu" else activation]

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        normed, dense = self.layer_norm(x), self.DenseReluDense
        if self._is_gated:
            hidden = self._activate(dense["wi_0"](normed)) * dense["wi_1"](normed)
        else:
            hidden = self._activate(dense["wi"](normed))
        out: Tensor = x + dense["wo"](hidden)
        return out


class _T5Block(nn.Module):
    def __init__(self, config: Mapping[str, Any], *, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_T5Attention(config, has_bias=has_bias), _T5FeedForward(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x, bias)
        return x


def distance_buckets(length: int, buckets: int, farthest: int) -> Tensor:
    """(length, length), int64: which of T5's `buckets` the distance from each token to each other falls into.

    Half of the buckets are for each direction. Of those, half stand for one distance each; the rest widen with the
    logarithm of the distance up to `farthest` tokens, and the last one holds everything beyond (arXiv:1910.10683).
    """
    positions = torch.arange(length)
    way = positions[None] - positions[:, None]
    half, exact = buckets // 2, buckets // 4
    distance = way.abs()
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(farthest / exact)
    far = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return (way > 0).long() * half + torch.where(distance < exact, distance, far)


def _embedding(count: int, width: int) -> nn.Embedding:
    # nn.Embedding alone would fill a tensor that has no memory yet with random numbers, and torch imports its compiler
    # for that on the meta device
    return nn.Embedding(count, width, _weight=torch.empty(count, width))


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def _join_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
