"""The autoencoder's parameters under the names that files give them: diffusers', its older ones, Black Forest Labs'."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from torch import Tensor

#: Parts of Black Forest Labs' names, and of the names that diffusers gave to attention before 2023, in today's.
_PARTS: Final = (
    (re.compile(r"\.mid\.block_([12])\."), lambda found: f".mid_block.resnets.{int(found[1]) - 1}."),
    (re.compile(r"\.mid\.attn_1\.norm\."), ".mid_block.attentions.0.group_norm."),
    (re.compile(r"\.mid\.attn_1\.([qkv])\."), r".mid_block.attentions.0.to_\1."),
    (re.compile(r"\.mid\.attn_1\.proj_out\."), ".mid_block.attentions.0.to_out.0."),
    (
        re.compile(r"\.attentions\.0\.(q)uery\.|\.attentions\.0\.(k)ey\.|\.attentions\.0\.(v)alue\."),
        r".attentions.0.to_\1\2\3.",
    ),
    (re.compile(r"\.attentions\.0\.proj_attn\."), ".attentions.0.to_out.0."),
    (re.compile(r"\.down\.(\d+)\.block\.(\d+)\."), r".down_blocks.\1.resnets.\2."),
    (re.compile(r"\.down\.(\d+)\.downsample\."), r".down_blocks.\1.downsamplers.0."),
    (re.compile(r"\.nin_shortcut\."), ".conv_shortcut."),
    (re.compile(r"^(encoder|decoder)\.norm_out\."), r"\1.conv_norm_out."),
)
_UP: Final = re.compile(r"\.up\.(\d+)\.(block\.(\d+)|upsample)\.")


def autoencoder_name(name: str, levels: int) -> str:
    """A parameter's name in `Autoencoder`, from any naming. `levels` is the number of sizes that the network has."""

    def up_level(found: re.Match[str]) -> str:
        # Black Forest Labs count the decoder's levels from the picture, diffusers from the latents
        part = "upsamplers.0" if found[3] is None else f"resnets.{found[3]}"
        return f".up_blocks.{levels - 1 - int(found[1])}.{part}."

    name = _UP.sub(up_level, name)
    for pattern, replacement in _PARTS:
        name = pattern.sub(replacement, name)
    return name


def named_as_ours(tensors: Iterable[tuple[str, Tensor]], levels: int) -> Iterator[tuple[str, Tensor]]:
    """The same tensors under the names of `Autoencoder`. Attention stored as 1x1 convolutions becomes linear layers."""
    for name, tensor in tensors:
        ours = autoencoder_name(name, levels)
        is_linear = ".attentions." in ours and ours.endswith(".weight") and tensor.dim() == 4
        yield ours, tensor.flatten(1) if is_linear else tensor
