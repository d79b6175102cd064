"""FLUX's joint attention for float32 on a CPU, where memory traffic beside the products counts.

Same arithmetic as diffusers' `FluxAttnProcessor`; the rotary embedding (Su et al., RoFormer, arXiv:2104.09864) is one
complex product instead of a stack, two products and a sum over the whole of queries and keys.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class ComplexRotaryAttention:
    """An attention processor for diffusers' `FluxAttention`."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(rows, tokens, width) of the image, and of the text in double blocks, to the same."""
        query = attn.norm_q(_split_heads(attn.to_q(hidden_states), attn.head_dim))
        key = attn.norm_k(_split_heads(attn.to_k(hidden_states), attn.head_dim))
        value = _split_heads(attn.to_v(hidden_states), attn.head_dim)
        if encoder_hidden_states is not None:
            text_query, text_key, text_value = _project_text(attn, encoder_hidden_states)
            query = torch.cat([text_query, query], dim=1)
            key = torch.cat([text_key, key], dim=1)
            value = torch.cat([text_value, value], dim=1)
        if image_rotary_emb is not None:
            rotation = _rotation(*image_rotary_emb)
            query, key = _rotate(query, rotation), _rotate(key, rotation)
        mixed = _attend(query, key, value, attention_mask)
        if encoder_hidden_states is None:
            return mixed
        length = encoder_hidden_states.shape[1]
        text, image = mixed[:, :length], mixed[:, length:]
        # the projections are over contiguous rows: a strided input would be copied there all the same
        return attn.to_out[0](image.contiguous()), attn.to_add_out(text.contiguous())


def _project_text(attn: Any, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query = attn.norm_added_q(_split_heads(attn.add_q_proj(text), attn.head_dim))
    key = attn.norm_added_k(_split_heads(attn.add_k_proj(text), attn.head_dim))
    return query, key, _split_heads(attn.add_v_proj(text), attn.head_dim)


def _split_heads(x: Tensor, width: int) -> Tensor:
    return x.reshape(*x.shape[:-1], -1, width)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """(rows, tokens, heads, head width) each, to (rows, tokens, width)."""
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2, 3)


def _rotation(cosines: Tensor, sines: Tensor) -> Tensor:
    """(tokens, 1, head width / 2) complex: diffusers repeats every angle for the two numbers that it turns."""
    return torch.complex(cosines[:, ::2].contiguous(), sines[:, ::2].contiguous()).unsqueeze(1)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    pairs = torch.view_as_complex(_split_heads(x, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2)
