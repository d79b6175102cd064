"""Random autoencoders of FLUX's kind, and their weights under Black Forest Labs' names."""

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor

#: The configuration of FLUX.1's own autoencoder.
FLUX_CONFIG: Final[Mapping[str, Any]] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": True,
}


def config(**changes: Any) -> dict[str, Any]:
    """FLUX's configuration, narrow, with these changes."""
    config = {**FLUX_CONFIG, "block_out_channels": [32, 32, 64, 64], **changes}
    levels = len(config["block_out_channels"])
    config["down_block_types"], config["up_block_types"] = (
        ["DownEncoderBlock2D"] * levels,
        ["UpDecoderBlock2D"] * levels,
    )
    return config


def random_stock(config: Mapping[str, Any]) -> AutoencoderKL:
    """diffusers' autoencoder with random weights, norms and biases too: those start as ones and zeros."""
    torch.manual_seed(0)
    stock = AutoencoderKL.from_config(dict(config)).eval().requires_grad_(requires_grad=False)
    for parameter in stock.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return stock


def as_black_forest_labs(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as `ae.safetensors` has them."""
    levels = 1 + max(int(found[1]) for name in weights if (found := re.search(r"up_blocks\.(\d+)", name)))
    return {_bfl_name(name, levels): _bfl_tensor(name, tensor) for name, tensor in weights.items()}


def _bfl_tensor(name: str, tensor: Tensor) -> Tensor:
    is_projection = ".attentions." in name and tensor.dim() == 2
    return (tensor[:, :, None, None] if is_projection else tensor).contiguous()


def _bfl_name(name: str, levels: int) -> str:
    for ours, theirs in (
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("resnets", "block"),
        ("down_blocks", "down"),
    ):
        name = name.replace(ours, theirs)
    return re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", name)
