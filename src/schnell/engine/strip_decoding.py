"""Decoding of a picture in horizontal strips, for cards that cannot hold the decoder's maps of a whole one.

Whole, FLUX's decoder takes 1.6 GB at 1024x1024 and 3.2 GB at 1440x1440. The usual way out, separate tiles whose
overlaps are blended, normalises every tile by itself and so changes colours across the picture. Here the network runs
layer by layer over strips of whole maps, which may wait in host memory, and every norm takes the moments of the whole
map: the result is that of `Autoencoder.decode` up to rounding, without seams.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.engine.autoencoder import Autoencoder, ResidualBlock

#: Of one strip of one map on the device; some six of them exist at once.
STRIP_BYTES: Final = 32 << 20


@torch.inference_mode()
def decode_in_strips(
    vae: Autoencoder, latents: Tensor, maps_on: torch.device | None = None, strip_bytes: int = STRIP_BYTES
) -> Tensor:
    """What `vae.decode(latents)` gives, with a few strips of the maps on the weights' device at a time.

    `maps_on` is where whole maps wait and the pictures are left, by default the CPU. On the card itself nothing is
    copied to and fro, and the peak is about two thirds of a whole decoding's.
    """
    return _StripDecoder(vae, maps_on or torch.device("cpu"), strip_bytes).decode(latents)


class _Map:
    """A map (rows, channels, height, width) that is written strip by strip from the top, and its moments by groups."""

    def __init__(self, values: Tensor, groups: int) -> None:
        self.values, self._groups = values, groups
        self._moments: list[tuple[int, Tensor, Tensor]] = []

    def write(self, top: int, strip: Tensor) -> None:
        """Put a strip in its place."""
        self.values[:, :, top : top + strip.shape[2]] = strip
        if strip.shape[1] % self._groups:
            return  # pictures, which nothing normalises
        grouped = strip.float().reshape(strip.shape[0], self._groups, -1)
        variance, mean = torch.var_mean(grouped, dim=2, correction=0)
        self._moments.append((strip.shape[2], mean, variance))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (rows, groups) of the whole map, float32 (Chan, Golub and LeVeque, 1979)."""
        parts = [(height / self.values.shape[2], mean, variance) for height, mean, variance in self._moments]
        mean = torch.stack([share * one for share, one, _ in parts]).sum(0)
        spread = [share * (variance + (one - mean).square()) for share, one, variance in parts]
        return mean, torch.stack(spread).sum(0)


class _StripDecoder:
    def __init__(self, vae: Autoencoder, maps_on: torch.device, strip_bytes: int) -> None:
        self._vae, self._maps_on, self._strip_bytes = vae, maps_on, strip_bytes

    def decode(self, latents: Tensor) -> Tensor:
        decoder: Any = self._vae.decoder
        # at the latents' size a map has a 64th of the places that it has at the picture's: the middle runs whole
        whole = decoder.mid_block(decoder.conv_in(self._vae.decoder_input(latents)))
        current = self._empty_map(whole, whole.shape[2])
        current.write(0, whole)
        for level in decoder.up_blocks:
            for block in level.resnets:
                current = self._residual(block, current)
            for layer in level.upsamplers:
                current = self._map(layer, current, scale=2)
        activate = _activation(decoder.conv_norm_out, current)
        return self._map(lambda strip: decoder.conv_out(activate(strip)), current).values

    def _residual(self, block: ResidualBlock, x: _Map) -> _Map:
        activate = _activation(block.norm1, x)
        hidden = self._map(lambda strip: block.conv1(activate(strip)), x)
        activate_hidden = _activation(block.norm2, hidden)
        return self._map(
            lambda strip: block.conv2(activate_hidden(strip)),
            hidden,
            added=lambda at: block.shortcut(self._strip(x, at)),
        )

    def _map(
        self, layer: Callable[[Tensor], Tensor], x: _Map, scale: int = 1, added: Callable[[slice], Tensor] | None = None
    ) -> _Map:
        """A 3x3 convolution, with whatever goes before it in `layer`, over all of `x`, strip after strip.

        `scale` is how many times the sides grow; `added` gives what is added to the rows of a strip.
        """
        height, made = x.values.shape[2], None
        for at in self._strips(x, scale):
            # a convolution sees one row beyond those it gives; beyond the map's edge it sees zeros, as it does whole
            seen = slice(max(0, at.start - 1), min(height, at.stop + 1))
            strip = layer(self._strip(x, seen))
            first = scale * (at.start - seen.start)
            strip = strip[:, :, first : first + scale * (at.stop - at.start)]
            if added is not None:
                strip = strip + added(at)
            made = made or self._empty_map(strip, scale * height)
            made.write(scale * at.start, strip)
        assert made is not None  # noqa: S101 - for the type checker: a map has rows
        return made

    def _strips(self, x: _Map, scale: int) -> list[slice]:
        rows, channels, height, width = x.values.shape
        row_bytes = rows * channels * width * scale * scale * x.values.element_size()
        step = max(1, self._strip_bytes // row_bytes)
        return [slice(top, min(top + step, height)) for top in range(0, height, step)]

    def _strip(self, x: _Map, at: slice) -> Tensor:
        strip = x.values[:, :, at].to(self._vae.device)
        return strip.contiguous(memory_format=torch.channels_last)

    def _empty_map(self, like: Tensor, height: int) -> _Map:
        shape = (*like.shape[:2], height, like.shape[3])
        # channels last, so that a strip's rows lie together and travel in one piece
        values = torch.empty(shape, dtype=like.dtype, device=self._maps_on, memory_format=torch.channels_last)
        return _Map(values, self._vae.shape.groups)


def _activation(norm: nn.GroupNorm, x: _Map) -> Callable[[Tensor], Tensor]:
    """`silu(norm(…))` of strips of `x`, by the moments of all of it."""
    mean, variance = x.moments()
    size = norm.num_channels // norm.num_groups
    weight = norm.weight.float() * torch.rsqrt(variance + norm.eps).repeat_interleave(size, dim=1)
    offset = norm.bias.float() - mean.repeat_interleave(size, dim=1) * weight

    def activate(strip: Tensor) -> Tensor:
        normed = torch.addcmul(offset[:, :, None, None], strip.float(), weight[:, :, None, None])
        return F.silu(normed.to(strip.dtype))

    return activate
