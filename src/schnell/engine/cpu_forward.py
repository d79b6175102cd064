"""FLUX's transformer forward for CPUs. On a GPU the engine runs diffusers' own forward.

Why two: run as diffusers writes it, a third of a step on a CPU goes to passes over memory between the matrix products.
This is the same arithmetic over the same modules and weights as diffusers' `FluxTransformer2DModel.forward`, in fewer
passes: layers with one input are one product (`StackedLinear`), text and image are joined once and not in every block,
the timestep's signal is activated once, scale, shift and gate are one pass each, and the rotary embedding (Su et al.,
RoFormer, arXiv:2104.09864) is a complex product with angles that are kept from step to step. Tests hold it against
diffusers' in float32 and bfloat16. The GPU has kernels of its own for what is fused by hand here.
"""

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.slot_linear import StackedLinear

#: Tokens up to which a softmax between two bfloat16 products beats torch's fused attention, which rounds less often but
#: multiplies at half the speed; the scores still fit the cache.
_LONGEST_PLAIN_ATTENTION: Final = 512
#: Numbers at a time: 1 MiB of float32, which stays in a core's cache between the passes over it.
_GELU_CHUNK: Final = 1 << 18
#: GELU's tanh form is x * sigmoid(2z) with 2z = x * (linear + cubic * x^2).
_GELU_LINEAR: Final = 2 * math.sqrt(2 / math.pi)
_GELU_CUBIC: Final = 0.044715 * _GELU_LINEAR


class FluxForward:
    """diffusers' FLUX transformer, called as its `forward` is. For inference only: results are overwritten in place.

    Stacks the weights of `network`'s layers in place, so that the network's own `forward` goes on working. One thread
    at a time: the rotary angles of the last positions are kept on the object.
    """

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
        """The velocity (rows, image tokens, channels) of `hidden_states` of the same shape.

        `encoder_hidden_states` (rows, text tokens, T5 width) and `pooled_projections` (rows, CLIP width) are the
        prompt; `timestep` (rows) is a noise level from 0 to 1; `img_ids` and `txt_ids` are (tokens, 3) positions of all
        rows.
        """
        assert not return_dict  # noqa: S101 - a tuple is the only form
        network = self._network
        rotation = self._rotation_for(torch.cat([txt_ids, img_ids]))
        image = network.x_embedder(hidden_states)
        # every block's modulation begins with the same SiLU of the same signal (rows, width)
        signal = F.silu(network.time_text_embed(timestep.to(image.dtype) * 1000, pooled_projections))
        text = network.context_embedder(encoder_hidden_states)
        for block, image_qkv, text_qkv in zip(network.transformer_blocks, self._image_qkv, self._text_qkv, strict=True):
            text, image = _double_block(block, image_qkv, text_qkv, (text, image), signal, rotation)
        # single blocks see text and image as one sequence, text first
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
    # diffusers' order: shift, scale and gate of the attention, then of the feed-forward; each (rows, 1, width)
    of_image = block.norm1.linear(signal).unsqueeze(1).chunk(6, dim=-1)
    of_text = block.norm1_context.linear(signal).unsqueeze(1).chunk(6, dim=-1)
    qkv = torch.cat(
        [
            text_qkv(_modulated(text, of_text[1], of_text[0])),
            image_qkv(_modulated(image, of_image[1], of_image[0])),
        ],
        dim=1,
    )
    # text and image have norms of their own, but are normalised in one pass: each token's weights, side by side
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
    gelu_into(hidden, hidden)  # in place: nobody else holds the layer's output
    return torch.addcmul(x, gate, ff.net[2](hidden))


def _single_block(block: Any, stacked: StackedLinear, x: Tensor, signal: Tensor, rotation: Tensor) -> Tensor:
    attn = block.attn
    shift, scale, gate = block.norm.linear(signal).unsqueeze(1).chunk(3, dim=-1)
    projected = stacked(_modulated(x, scale, shift))
    qkv, hidden = projected[..., : 3 * attn.inner_dim], projected[..., 3 * attn.inner_dim :]
    # attention and GELU each write their part of `proj_out`'s input, so that nothing is concatenated
    joined = x.new_empty(*x.shape[:2], attn.inner_dim + block.mlp_hidden_dim)
    _attend(qkv, joined[..., : attn.inner_dim], _norm_weights(attn.norm_q, attn.norm_k), rotation, attn)
    gelu_into(hidden, joined[..., attn.inner_dim :])
    return torch.addcmul(x, gate, block.proj_out(joined))


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The layer norm of `x` (rows, tokens, width) without weights of its own, scaled and shifted by the timestep."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def _norm_weights(of_query: nn.RMSNorm, of_key: nn.RMSNorm) -> Tensor:
    """(2, 1, 1, head width) in float32: the weights of the norms of queries and keys."""
    return torch.stack([of_query.weight, of_key.weight]).float()[:, None, None]


def _attend(qkv: Tensor, out: Tensor, weights: Tensor, rotation: Tensor, attn: Any) -> None:
    """Joint attention of queries, keys and values (rows, tokens, 3*width), written into `out` (rows, tokens, width)."""
    # (3, rows, heads, tokens, head width), a view
    heads = qkv.view(*qkv.shape[:2], 3, -1, attn.head_dim).permute(2, 0, 3, 1, 4)
    query, key = _normalised_and_turned(heads[:2].transpose(0, 1), weights, rotation, attn.norm_q.eps).unbind(1)
    value = heads[2]
    # queries are divided by the square root of their width already: no scale in either branch
    if qkv.dtype == torch.bfloat16 and qkv.shape[1] <= _LONGEST_PLAIN_ATTENTION:
        scores = torch.matmul(query, key.transpose(-1, -2))
        mixed = torch.matmul(scores.softmax(-1), value)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    out.view(*out.shape[:2], -1, attn.head_dim).copy_(mixed.transpose(1, 2))


def _normalised_and_turned(heads: Tensor, weights: Tensor, rotation: Tensor, eps: float) -> Tensor:
    """RMS norm and rotary embedding of queries and keys (rows, 2, heads, tokens, head width), in the same dtype.

    Computed in float32 and rounded once. Queries come out divided by the square root of their width, as attention wants
    them. The norm divides a vector by one number, which may as well come last, in the pass that rounds.
    """
    width = heads.shape[-1]
    # a copy whatever the dtype is (`.float()` would hand back float32 itself), since what follows writes in place
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
    # flattening must not copy: `out` is a tensor, or the last columns of one, whose leading dimensions are contiguous
    rows = max(1, _GELU_CHUNK // x.shape[-1])
    parts, targets = torch.split(x.flatten(0, -2), rows), torch.split(out.flatten(0, -2), rows)
    # addcmul takes a tensor only, and broadcasts it
    linear = torch.tensor(_GELU_LINEAR, device=x.device)
    for part, target in zip(parts, targets, strict=True):
        exact = part.float()
        signal = torch.addcmul(linear, exact, exact, value=_GELU_CUBIC).mul_(exact).sigmoid_()
        torch.mul(exact, signal, out=target)
