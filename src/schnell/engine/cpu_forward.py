"""A pass through FLUX's transformer on a CPU, where memory traffic beside the matrix products is what costs.

The same arithmetic over the same modules and weights as diffusers' `FluxTransformer2DModel.forward`, in fewer passes
over memory: layers with one input are one product (`StackedLinear`), text and image are joined once and not in every
block, the timestep's signal is activated once, scale, shift and gate are one pass each, and the rotary embedding (Su et
al., RoFormer, arXiv:2104.09864) is a complex product with angles that are kept from step to step.
"""

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.slot_linear import StackedLinear

# up to so many tokens, softmax between two bfloat16 products beats torch's fused kernel, which rounds less often but
# multiplies at half the speed; the scores still fit the cache
_LONGEST_PLAIN_ATTENTION: Final = 512
_GELU_CHUNK: Final = 1 << 18
_GELU_LINEAR: Final = 2 * math.sqrt(2 / math.pi)
_GELU_CUBIC: Final = 0.044715 * _GELU_LINEAR


class FluxForward:
    """diffusers' FLUX transformer, called as its `forward` is. For inference only: intermediate results are reused."""

    def __init__(self, network: nn.Module) -> None:
        self._network: Any = network
        blocks: Any = network.transformer_blocks
        single_blocks: Any = network.single_transformer_blocks
        self._image_qkv = [StackedLinear([b.attn.to_q, b.attn.to_k, b.attn.to_v]) for b in blocks]
        self._text_qkv = [StackedLinear([b.attn.add_q_proj, b.attn.add_k_proj, b.attn.add_v_proj]) for b in blocks]
        self._single_in = [StackedLinear([b.attn.to_q, b.attn.to_k, b.attn.to_v, b.proj_mlp]) for b in single_blocks]
        self._ids = torch.empty(0)
        self._rotation = torch.empty(0)

    def __call__(  # noqa: PLR0913 - diffusers' form
        self,
        *,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """(rows, image tokens, channels) and (rows, text tokens, width) to (rows, image tokens, channels)."""
        assert not return_dict  # noqa: S101 - a tuple is the only form
        network = self._network
        rotation = self._rotation_for(torch.cat([txt_ids, img_ids]))
        image = network.x_embedder(hidden_states)
        signal = F.silu(network.time_text_embed(timestep.to(image.dtype) * 1000, pooled_projections))
        text = network.context_embedder(encoder_hidden_states)
        for block, image_qkv, text_qkv in zip(network.transformer_blocks, self._image_qkv, self._text_qkv, strict=True):
            text, image = _double_block(block, image_qkv, text_qkv, (text, image), signal, rotation)
        joint = torch.cat([text, image], dim=1)
        for block, stacked in zip(network.single_transformer_blocks, self._single_in, strict=True):
            joint = _single_block(block, stacked, joint, signal, rotation)
        out = network.norm_out
        scale, shift = out.linear(signal).unsqueeze(1).chunk(2, dim=-1)
        return (network.proj_out(_modulated(joint[:, text.shape[1] :], scale, shift)),)

    def _rotation_for(self, ids: Tensor) -> Tensor:
        """(tokens, head width / 2) complex; computed anew only where the positions are other than last time."""
        if not torch.equal(ids, self._ids):
            cosines, sines = self._network.pos_embed(ids)
            # diffusers repeats every angle for the two numbers that it turns
            rotation = torch.complex(cosines[:, ::2].contiguous(), sines[:, ::2].contiguous())
            self._ids, self._rotation = ids, rotation
        return self._rotation


def _double_block(  # noqa: PLR0913, PLR0917 - a block, its stacked layers, and what passes through it
    block: Any,
    image_qkv: StackedLinear,
    text_qkv: StackedLinear,
    streams: tuple[Tensor, Tensor],
    signal: Tensor,
    rotation: Tensor,
) -> tuple[Tensor, Tensor]:
    text, image = streams
    attn, length = block.attn, text.shape[1]
    of_image = block.norm1.linear(signal).unsqueeze(1).chunk(6, dim=-1)
    of_text = block.norm1_context.linear(signal).unsqueeze(1).chunk(6, dim=-1)
    qkv = torch.cat(
        [
            text_qkv(_modulated(text, of_text[1], of_text[0])),
            image_qkv(_modulated(image, of_image[1], of_image[0])),
        ],
        dim=1,
    )
    weights = torch.cat(
        [
            _norm_weights(attn.norm_added_q, attn.norm_added_k).expand(-1, -1, length, -1),
            _norm_weights(attn.norm_q, attn.norm_k).expand(-1, -1, image.shape[1], -1),
        ],
        dim=2,
    )
    mixed = torch.empty_like(qkv[..., : attn.inner_dim])
    _attend(qkv, mixed, weights, rotation, attn)
    image = torch.addcmul(image, of_image[2], attn.to_out[0](mixed[:, length:].contiguous()))
    text = torch.addcmul(text, of_text[2], attn.to_add_out(mixed[:, :length].contiguous()))
    image = _feed_forward(block.ff, image, of_image[3:])
    return _feed_forward(block.ff_context, text, of_text[3:]), image


def _feed_forward(ff: Any, x: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
    shift, scale, gate = modulation
    hidden = ff.net[0].proj(_modulated(x, scale, shift))
    gelu_into(hidden, hidden)
    return torch.addcmul(x, gate, ff.net[2](hidden))


def _single_block(block: Any, stacked: StackedLinear, x: Tensor, signal: Tensor, rotation: Tensor) -> Tensor:
    attn = block.attn
    shift, scale, gate = block.norm.linear(signal).unsqueeze(1).chunk(3, dim=-1)
    projected = stacked(_modulated(x, scale, shift))
    qkv, hidden = projected[..., : 3 * attn.inner_dim], projected[..., 3 * attn.inner_dim :]
    joined = x.new_empty(*x.shape[:2], attn.inner_dim + block.mlp_hidden_dim)
    _attend(qkv, joined[..., : attn.inner_dim], _norm_weights(attn.norm_q, attn.norm_k), rotation, attn)
    gelu_into(hidden, joined[..., attn.inner_dim :])
    return torch.addcmul(x, gate, block.proj_out(joined))


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def _norm_weights(of_query: nn.RMSNorm, of_key: nn.RMSNorm) -> Tensor:
    """(2, 1, 1, head width) in float32: what normalised queries and keys are multiplied with."""
    return torch.stack([of_query.weight, of_key.weight]).float()[:, None, None]


def _attend(qkv: Tensor, out: Tensor, weights: Tensor, rotation: Tensor, attn: Any) -> None:
    """Joint attention of queries, keys and values (rows, tokens, 3*width) into `out` (rows, tokens, width)."""
    heads = qkv.view(*qkv.shape[:2], 3, -1, attn.head_dim).permute(2, 0, 3, 1, 4)
    query, key = _normalised_and_turned(heads[:2].transpose(0, 1), weights, rotation, attn.norm_q.eps).unbind(1)
    value = heads[2]
    if qkv.dtype == torch.bfloat16 and qkv.shape[1] <= _LONGEST_PLAIN_ATTENTION:
        scores = torch.matmul(query, key.transpose(-1, -2))
        mixed = torch.matmul(scores.softmax(-1), value)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    out.view(*out.shape[:2], -1, attn.head_dim).copy_(mixed.transpose(1, 2))


def _normalised_and_turned(heads: Tensor, weights: Tensor, rotation: Tensor, eps: float) -> Tensor:
    """RMS norm and rotary embedding of (rows, 2, heads, tokens, head width), in float32 from end to end.

    Queries come out divided by the square root of their width, as attention wants them. A rotation does not change how
    long a vector is: it is divided by its length last, in the pass that rounds it.
    """
    width = heads.shape[-1]
    exact = torch.empty(heads.shape, device=heads.device).copy_(heads)
    mean_square = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_().div_(width)
    inverse = mean_square.add_(eps).rsqrt_()
    inverse[:, 0].mul_(width**-0.5)
    torch.view_as_complex(exact.mul_(weights).view(*exact.shape[:-1], -1, 2)).mul_(rotation)
    turned = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    return torch.mul(exact, inverse, out=turned)


def gelu_into(x: Tensor, out: Tensor) -> None:
    """GELU in its tanh form, written into `out`, which may be `x`.

    tanh(z) = 2*sigmoid(2z) - 1 turns it into x*sigmoid(2z): the same function at half the time of torch's own, whose
    tanh is exact to the last bit. In float32 whatever the inputs are, chunk by chunk so that it stays in the cache.
    """
    rows = max(1, _GELU_CHUNK // x.shape[-1])
    parts, targets = torch.split(x.flatten(0, -2), rows), torch.split(out.flatten(0, -2), rows)
    linear = torch.tensor(_GELU_LINEAR, device=x.device)
    for part, target in zip(parts, targets, strict=True):
        exact = part.float()
        signal = torch.addcmul(linear, exact, exact, value=_GELU_CUBIC).mul_(exact).sigmoid_()
        torch.mul(exact, signal, out=target)
