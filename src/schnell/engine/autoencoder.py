"""FLUX's autoencoder: pictures to latents and back. Parameters have the names that diffusers gives them.

A convolutional network after Esser et al., arXiv:2012.09841, with the scaling and shift that FLUX's latents have. Tests
hold it against diffusers' `AutoencoderKL`; files with Black Forest Labs' names are read through `named_as_ours`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.flux_kernels import is_functional
from schnell.errors import ModelFolderError
from schnell.models.autoencoder_tensors import autoencoder_name

_EPSILON: Final = 1e-6
#: The fields of diffusers' configuration that have one value in every FLUX model, and what is read where they are left
#: out. Another value is another network.
_FIXED: Final[Mapping[str, tuple[Any, ...]]] = {
    "act_fn": ("silu",),
    "latents_mean": (None,),
    "latents_std": (None,),
}


@dataclass(frozen=True, slots=True)
class AutoencoderShape:
    """What decides the autoencoder's layers and the range of its latents.

    `widths` are the channels of each level, from the picture's own size to the latents'; each level halves the sides of
    the one before. `resnets` counts residual blocks of a level in the encoder; the decoder has one more.
    """

    widths: tuple[int, ...]
    resnets: int
    groups: int
    latent_channels: int
    picture_channels: int
    has_attention: bool
    has_quant_conv: bool
    has_post_quant_conv: bool
    scaling_factor: float
    shift_factor: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "AutoencoderShape":
        """The shape that the `config.json` of diffusers' `AutoencoderKL` describes.

        Raises:
            ModelFolderError: another kind of network than FLUX's autoencoder.
            KeyError: a field is missing that has no default in diffusers.
        """
        for name, known in _FIXED.items():
            if config.get(name, known[0]) not in known:
                raise ModelFolderError(f"the autoencoder's {name} must be {known[0]}, not {config[name]!r}")
        kinds = {*config.get("down_block_types", ()), *config.get("up_block_types", ())}
        if other := kinds - {"DownEncoderBlock2D", "UpDecoderBlock2D"}:
            raise ModelFolderError(f"the autoencoder has {', '.join(sorted(other))}, which no FLUX model has")
        if config.get("out_channels", 3) != config.get("in_channels", 3):
            raise ModelFolderError("the autoencoder must give as many picture channels as it takes")
        return cls(
            widths=tuple(config["block_out_channels"]),
            resnets=config.get("layers_per_block", 1),
            groups=config.get("norm_num_groups", 32),
            latent_channels=config["latent_channels"],
            picture_channels=config.get("in_channels", 3),
            has_attention=config.get("mid_block_add_attention", True),
            has_quant_conv=config.get("use_quant_conv", True),
            has_post_quant_conv=config.get("use_post_quant_conv", True),
            scaling_factor=config["scaling_factor"],
            shift_factor=config.get("shift_factor") or 0.0,
        )


class Autoencoder(nn.Module):
    """Pictures (rows, 3, height, width) from -1 to 1, and their latents (rows, channels, height / n, width / n).

    n is 2 to the number of levels less one: 8 in FLUX. Latents are shifted and scaled to about mean 0 and variance 1,
    as the transformer takes and gives them.
    """

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = _Encoder(shape)
        self.decoder = Decoder(shape)
        doubled = 2 * shape.latent_channels
        self.quant_conv = nn.Conv2d(doubled, doubled, 1) if shape.has_quant_conv else nn.Identity()
        latent = shape.latent_channels
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if shape.has_post_quant_conv else nn.Identity()

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        return self.decoder.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.conv_in.weight.device

    def encode(self, pixels: Tensor) -> Tensor:
        """The mean latents of pictures, float32. Sides of `pixels` are multiples of n."""
        moments = self.quant_conv(self.encoder(pixels.to(self.device, self.dtype)))
        # the mean and not a sample: training computes latents once, and would learn the noise of a sample with them
        mean = moments[:, : self.shape.latent_channels].float()
        scaled: Tensor = (mean - self.shape.shift_factor) * self.shape.scaling_factor
        return scaled

    def decode(self, latents: Tensor) -> Tensor:
        """The pictures of latents, in the weights' number format; values may lie slightly beyond -1 and 1."""
        pixels: Tensor = self.decoder(self.decoder_input(latents))
        return pixels

    def decoder_input(self, latents: Tensor) -> Tensor:
        """Latents as `decoder` takes them: in their own range, in the weights' number format."""
        raw = latents.float() / self.shape.scaling_factor + self.shape.shift_factor
        prepared: Tensor = self.post_quant_conv(raw.to(self.device, self.dtype))
        return prepared


def named_as_ours(tensors: Iterable[tuple[str, Tensor]], levels: int) -> Iterator[tuple[str, Tensor]]:
    """The same tensors under the names of `Autoencoder`. Attention stored as 1x1 convolutions becomes linear layers."""
    for name, tensor in tensors:
        ours = autoencoder_name(name, levels)
        is_linear = ".attentions." in ours and ours.endswith(".weight") and tensor.dim() == 4
        yield ours, tensor.flatten(1) if is_linear else tensor


def activated(normed: Tensor) -> Tensor:
    """SiLU, written over its input, the output of a norm that nobody else holds, unless the run is functional."""
    # a map of a picture's own size is tens of megabytes: new memory for each costs as much as the arithmetic
    return F.silu(normed, inplace=not is_functional())


class _Encoder(nn.Module):
    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        widths = (shape.widths[0], *shape.widths)
        self.conv_in = nn.Conv2d(shape.picture_channels, widths[0], 3, padding=1)
        levels = [_DownLevel(shape, before, width) for before, width in pairwise(widths)]
        # the last level keeps its size
        levels[-1].downsamplers = nn.ModuleList()
        self.down_blocks = nn.ModuleList(levels)
        self.mid_block = MiddleBlock(shape)
        self.conv_norm_out = nn.GroupNorm(shape.groups, widths[-1], eps=_EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], 2 * shape.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        x = self.mid_block(x)
        moments: Tensor = self.conv_out(activated(self.conv_norm_out(x)))
        return moments


class Decoder(nn.Module):
    """Latents in their own range (rows, channels, height, width) to pictures."""

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        widths = (shape.widths[-1], *reversed(shape.widths))
        self.conv_in = nn.Conv2d(shape.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MiddleBlock(shape)
        levels = [UpLevel(shape, before, width) for before, width in pairwise(widths)]
        levels[-1].upsamplers = nn.ModuleList()
        self.up_blocks = nn.ModuleList(levels)
        self.conv_norm_out = nn.GroupNorm(shape.groups, widths[-1], eps=_EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], shape.picture_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The pictures (rows, 3, n height, n width)."""
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        pixels: Tensor = self.conv_out(activated(self.conv_norm_out(x)))
        return pixels


class _DownLevel(nn.Module):
    def __init__(self, shape: AutoencoderShape, before: int, width: int) -> None:
        super().__init__()
        inputs = (before, *(width,) * (shape.resnets - 1))
        self.resnets = nn.ModuleList(ResidualBlock(one, width, shape.groups) for one in inputs)
        self.downsamplers = nn.ModuleList([_Downsample(width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpLevel(nn.Module):
    """The decoder's layers at one size: residual blocks, then twice the sides (not in the last level)."""

    def __init__(self, shape: AutoencoderShape, before: int, width: int) -> None:
        super().__init__()
        inputs = (before, *(width,) * shape.resnets)
        self.resnets = nn.ModuleList(ResidualBlock(one, width, shape.groups) for one in inputs)
        self.upsamplers = nn.ModuleList([Upsample(width)])

    def forward(self, x: Tensor) -> Tensor:
        """`x` (rows, before, height, width) to (rows, width, 2 height, 2 width)."""
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class MiddleBlock(nn.Module):
    """Two residual blocks at the latents' size, attention between them where the shape has it."""

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        width = shape.widths[-1]
        self.resnets = nn.ModuleList(ResidualBlock(width, width, shape.groups) for _ in range(2))
        self.attentions = nn.ModuleList([_Attention(width, shape.groups)] if shape.has_attention else [])

    def forward(self, x: Tensor) -> Tensor:
        """`x` (rows, channels, height, width), transformed."""
        for layer in (self.resnets[0], *self.attentions, self.resnets[1]):
            x = layer(x)
        return x


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions beside an identity, or a 1x1 convolution where the channels change."""

    def __init__(self, before: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, eps=_EPSILON)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, eps=_EPSILON)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if before != width:
            self.conv_shortcut = nn.Conv2d(before, width, 1)
        self.changes_width = before != width

    def forward(self, x: Tensor) -> Tensor:
        """`x` (rows, before, height, width) to (rows, width, height, width)."""
        hidden = self.conv1(activated(self.norm1(x)))
        hidden = self.conv2(activated(self.norm2(hidden)))
        added: Tensor = self.shortcut(x) + hidden if is_functional() else hidden.add_(self.shortcut(x))
        return added

    def shortcut(self, x: Tensor) -> Tensor:
        """`x` in this block's output channels."""
        widened: Tensor = self.conv_shortcut(x) if self.changes_width else x
        return widened


class _Attention(nn.Module):
    """Self-attention of one head over all places of the map."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, eps=_EPSILON)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        places = self.group_norm(x).flatten(2).transpose(1, 2)
        # (rows, 1 head, places, channels)
        query, key, value = (part(places).unsqueeze(1) for part in (self.to_q, self.to_k, self.to_v))
        mixed = self.to_out[0](F.scaled_dot_product_attention(query, key, value).squeeze(1))
        added: Tensor = x + mixed.transpose(1, 2).reshape(x.shape)
        return added


class _Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # zeros at the right and below alone, as these networks were trained
        halved: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return halved


class Upsample(nn.Module):
    """Twice the sides: every place four times, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (rows, channels, height, width) to (rows, channels, 2 height, 2 width)."""
        doubled: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled
