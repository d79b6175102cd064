"""The served model's dimensions: how many blocks, and how wide. Read from config files, never from weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from schnell.errors import ModelFolderError
from schnell.models.folder import read_json

#: Width of the sinusoidal timestep embedding: diffusers fixes it for every FLUX.
TIME_CHANNELS: Final = 256


@dataclass(frozen=True, slots=True)
class LinearSize:
    """A linear layer's output and input features."""

    out_features: int
    in_features: int

    def __str__(self) -> str:
        return f"{self.out_features} x {self.in_features}"


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """A text encoder's dimensions: model width, attention width, feed-forward width, number of layers."""

    width: int
    attention_width: int
    feed_forward: int
    layers: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A FLUX.1 model's dimensions, in features or counts. The defaults are FLUX.1 [schnell]'s own."""

    width: int = 3072
    double_blocks: int = 19
    single_blocks: int = 38
    latent_channels: int = 64
    out_channels: int = 64
    text_width: int = 4096
    pooled_width: int = 768
    guidance_embeds: bool = False
    clip: EncoderShape = EncoderShape(width=768, attention_width=768, feed_forward=3072, layers=12)
    t5: EncoderShape = EncoderShape(width=4096, attention_width=4096, feed_forward=10240, layers=24)


FLUX_1: Final = ModelShape()


def read_model_shape(folder: Path) -> ModelShape:
    """The shape of the diffusers model in `folder`, from its components' `config.json` files.

    Raises:
        ModelFolderError: a config is missing, unreadable, or lacks a field.
    """
    try:
        return _shape_of(
            *(read_json(folder / part / "config.json") for part in ("transformer", "text_encoder", "text_encoder_2"))
        )
    except KeyError as error:
        raise ModelFolderError(f"{folder}: a config.json lacks the field {error}") from error


def _shape_of(transformer: dict[str, Any], clip: dict[str, Any], t5: dict[str, Any]) -> ModelShape:
    latent_channels = int(transformer["in_channels"])  # of a token: 64, not the autoencoder's 16
    return ModelShape(
        width=int(transformer["num_attention_heads"]) * int(transformer["attention_head_dim"]),
        double_blocks=int(transformer["num_layers"]),
        single_blocks=int(transformer["num_single_layers"]),
        latent_channels=latent_channels,
        out_channels=int(transformer.get("out_channels") or latent_channels),
        text_width=int(transformer["joint_attention_dim"]),
        pooled_width=int(transformer["pooled_projection_dim"]),
        guidance_embeds=bool(transformer.get("guidance_embeds", False)),
        clip=EncoderShape(
            int(clip["hidden_size"]),
            int(clip["hidden_size"]),
            int(clip["intermediate_size"]),
            int(clip["num_hidden_layers"]),
        ),
        t5=EncoderShape(
            int(t5["d_model"]), int(t5["num_heads"]) * int(t5["d_kv"]), int(t5["d_ff"]), int(t5["num_layers"])
        ),
    )
