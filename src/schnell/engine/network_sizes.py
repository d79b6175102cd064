"""How large a FLUX model's networks are, by its configurations alone: no weight is read, no network is built.

Tests hold the formulas against the networks themselves, built without memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from schnell.models.folder import ModelFolder, read_json

#: Of the timestep's sinusoidal embedding.
_TIME_CHANNELS: Final = 256
#: A FLUX block's feed-forward layer is so many times as wide as the block.
_MLP_RATIO: Final = 4


@dataclass(frozen=True, slots=True)
class Linears:
    """So many linear layers of one size, as LoRAs name them: queries, keys and values are three."""

    count: int
    in_features: int
    out_features: int
    has_bias: bool = True

    @property
    def weights(self) -> int:
        """Numbers in all of their matrices."""
        return self.count * self.in_features * self.out_features

    @property
    def biases(self) -> int:
        """Numbers in all of their biases."""
        return self.count * self.out_features * self.has_bias

    @property
    def rank_numbers(self) -> int:
        """Numbers that one rank of a LoRA on all of them takes."""
        return self.count * (self.in_features + self.out_features)

    @property
    def gains(self) -> int:
        """Numbers that DoRA's gains on all of them take."""
        return self.count * self.out_features


@dataclass(frozen=True, slots=True)
class Blocks:
    """So many transformer blocks of one sort, and the linear layers of one of them.

    `modulation` are the layers that turn timestep and prompt into shifts, scales and gates; `norms` counts numbers.
    """

    count: int
    layers: tuple[Linears, ...]
    modulation: tuple[Linears, ...]
    norms: int


@dataclass(frozen=True, slots=True)
class NetworkSizes:
    """The four networks in numbers of weights, by how they can be stored.

    `outer` are the transformer's embedders and its last layer. What no LoRA acts on (T5's and CLIP's vocabularies and
    norms, the autoencoder) is a plain count. `width` is the transformer's, `t5` the layers of one of `t5_blocks`,
    `decoder_width` the autoencoder's at a picture's full size. `text_tokens`, `draw_scale` and `pixels_per_token` are
    the model folder's.
    """

    width: int
    double: Blocks
    single: Blocks
    outer: tuple[Linears, ...]
    t5: tuple[Linears, ...]
    t5_blocks: int
    t5_other: int
    clip: tuple[Linears, ...]
    clip_other: int
    vae: int
    decoder_width: int
    text_tokens: int = 256
    draw_scale: int = 1
    pixels_per_token: int = 16

    @property
    def block_sorts(self) -> tuple[Blocks, ...]:
        """The transformer's blocks, in the order that they run in."""
        return (self.double, self.single)

    @property
    def token_layers(self) -> tuple[tuple[int, int, int, int], ...]:
        """The products over tokens in all blocks: how many, inputs, outputs, and how many of LoRAs' layers each is."""
        width, hidden = self.width, _MLP_RATIO * self.width
        doubles, singles = 2 * self.double.count, self.single.count  # a double block has each twice
        return (
            (doubles, width, 3 * width, 3),
            (doubles, width, width, 1),
            (doubles, width, hidden, 1),
            (doubles, hidden, width, 1),
            (singles, width, 3 * width + hidden, 4),
            (singles, width + hidden, width, 1),
        )

    @property
    def transformer(self) -> int:
        """Numbers in the whole transformer."""
        blocks = sum(sort.count * (_numbers(*sort.layers, *sort.modulation) + sort.norms) for sort in self.block_sorts)
        return blocks + _numbers(*self.outer)

    @property
    def text(self) -> int:
        """Numbers in both text encoders."""
        return self.t5_blocks * _numbers(*self.t5) + self.t5_other + _numbers(*self.clip) + self.clip_other


def _numbers(*linears: Linears) -> int:
    return sum(each.weights + each.biases for each in linears)


def read_network_sizes(model: ModelFolder) -> NetworkSizes:
    """The sizes of a model folder's networks.

    Raises:
        ModelFolderError: a configuration is missing or cannot be read.
    """
    parts = ("transformer", "text_encoder_2", "text_encoder", "vae")
    sizes = network_sizes(*(read_json(model.path / part / "config.json") for part in parts))
    return replace(
        sizes,
        text_tokens=model.sequence_length,
        draw_scale=model.draw_scale,
        pixels_per_token=model.pixels_per_token,
    )


def network_sizes(
    transformer: Mapping[str, Any], t5: Mapping[str, Any], clip: Mapping[str, Any], vae: Mapping[str, Any]
) -> NetworkSizes:
    """The sizes of the networks with these `config.json`s of a diffusers folder."""
    head = transformer["attention_head_dim"]
    width = head * transformer["num_attention_heads"]
    wide = _MLP_RATIO * width
    doubles, singles = transformer["num_layers"], transformer["num_single_layers"]
    channels = transformer["in_channels"]
    return NetworkSizes(
        width=width,
        double=Blocks(
            doubles,
            # queries, keys, values and the way out, for the picture and for the text
            (Linears(8, width, width), Linears(2, width, wide), Linears(2, wide, width)),
            (Linears(2, width, 6 * width),),
            norms=4 * head,
        ),
        single=Blocks(
            singles,
            # attention and feed-forward go out through one layer
            (Linears(3, width, width), Linears(1, width, wide), Linears(1, width + wide, width)),
            (Linears(1, width, 3 * width),),
            norms=2 * head,
        ),
        outer=(
            Linears(1, channels, width),
            Linears(1, transformer["joint_attention_dim"], width),
            Linears(1, _TIME_CHANNELS, width),
            Linears(1, transformer["pooled_projection_dim"], width),
            Linears(2, width, width),
            Linears(1, width, 2 * width),
            Linears(1, width, transformer.get("out_channels") or channels),
        ),
        t5=_t5_linears(t5),
        t5_blocks=t5["num_layers"],
        t5_other=_t5_other(t5),
        clip=_clip_linears(clip),
        clip_other=_clip_other(clip),
        vae=_vae_numbers(vae),
        decoder_width=vae["block_out_channels"][0],
    )


def _t5_linears(config: Mapping[str, Any]) -> tuple[Linears, ...]:
    width, wide = config["d_model"], config["d_ff"]
    inner = config["num_heads"] * config["d_kv"]
    ways_in = 2 if "-" in config["feed_forward_proj"] else 1
    return (
        Linears(3, width, inner, has_bias=False),
        Linears(1, inner, width, has_bias=False),
        Linears(ways_in, width, wide, has_bias=False),
        Linears(1, wide, width, has_bias=False),
    )


def _t5_other(config: Mapping[str, Any]) -> int:
    width, norms = config["d_model"], 2 * config["num_layers"] + 1
    position_biases = config["relative_attention_num_buckets"] * config["num_heads"]
    return int(config["vocab_size"] * width + norms * width + position_biases)


def _clip_linears(config: Mapping[str, Any]) -> tuple[Linears, ...]:
    layers, width, wide = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    return (Linears(4 * layers, width, width), Linears(layers, width, wide), Linears(layers, wide, width))


def _clip_other(config: Mapping[str, Any]) -> int:
    width, norms = config["hidden_size"], 2 * config["num_hidden_layers"] + 1
    return int((config["vocab_size"] + config["max_position_embeddings"]) * width + norms * 2 * width)


def _vae_numbers(config: Mapping[str, Any]) -> int:
    """Encoder and decoder of diffusers' `AutoencoderKL` (Rombach et al., arXiv:2112.10752)."""
    widths, latent = list(config["block_out_channels"]), config["latent_channels"]
    each = config["layers_per_block"]
    return _vae_half(widths, each, config["in_channels"], 2 * latent, config) + _vae_half(
        widths[::-1], each + 1, latent, config["out_channels"], config
    )


def _vae_half(widths: list[int], resnets: int, channels_in: int, channels_out: int, config: Mapping[str, Any]) -> int:
    """Numbers in one half: a first convolution, a level for each width, a middle of two residual blocks, a last one.

    The encoder has its middle behind the levels and the decoder before them, so it is as wide as the innermost level.
    """
    total = _convolution(channels_in, widths[0]) + 2 * widths[-1] + _convolution(widths[-1], channels_out)
    before = widths[0]
    for level, width in enumerate(widths):
        total += _residual(before, width) + (resnets - 1) * _residual(width, width)
        if level < len(widths) - 1:
            total += _convolution(width, width)
        before = width
    middle = max(widths[0], widths[-1])
    attention = 4 * (middle * middle + middle) + 2 * middle if config.get("mid_block_add_attention", True) else 0
    return total + 2 * _residual(middle, middle) + attention


def _residual(before: int, after: int) -> int:
    shortcut = before * after + after if before != after else 0
    return 2 * before + _convolution(before, after) + 2 * after + _convolution(after, after) + shortcut


def _convolution(before: int, after: int) -> int:
    return 9 * before * after + after


def _flux_schnell_configs() -> tuple[Mapping[str, Any], ...]:
    transformer = {
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
    }
    t5 = {
        "num_layers": 24,
        "d_model": 4096,
        "d_ff": 10240,
        "num_heads": 64,
        "d_kv": 64,
        "vocab_size": 32128,
        "relative_attention_num_buckets": 32,
        "feed_forward_proj": "gated-gelu",
    }
    clip = {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
    }
    vae = {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 16,
        "in_channels": 3,
        "out_channels": 3,
    }
    return transformer, t5, clip, vae


#: FLUX.1 [schnell]'s, so that it can be planned for before it is downloaded.
FLUX_SCHNELL: Final = network_sizes(*_flux_schnell_configs())
