"""The networks of `schnell-mini`: FLUX.1's classes, narrow."""

from dataclasses import dataclass

from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from schnell.engine.flux import VelocityNetwork
from schnell_mini.tokens import MAX_TOKENS


@dataclass(frozen=True)
class Shape:
    """Widths and depths. `width` is a multiple of `head`."""

    width: int = 256
    head: int = 64
    double_blocks: int = 2
    single_blocks: int = 12
    t5_layers: int = 1
    t5_width: int = 64
    clip_layers: int = 3
    clip_hidden: int = 1024
    vae_channels: tuple[int, ...] = (16, 32, 64, 96)
    vocabulary: int = 6000

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.width // self.head


def build_vae(shape: Shape) -> AutoencoderKL:
    """f8, 16 latent channels, no attention."""
    stages = len(shape.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=shape.vae_channels,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=256,
    )


def build_t5(shape: Shape, vocabulary: int) -> T5EncoderModel:
    """The token-wise encoder."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=shape.t5_width,
        d_kv=shape.t5_width,
        d_ff=2 * shape.t5_width,
        num_layers=shape.t5_layers,
        num_heads=1,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return T5EncoderModel(config)


def build_clip(shape: Shape, vocabulary: int) -> CLIPTextModel:
    """The pooled encoder, read at `</s>`."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.clip_hidden,
        num_hidden_layers=shape.clip_layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=shape.width,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    return CLIPTextModel(config)


def build_transformer(shape: Shape) -> FluxTransformer2DModel:
    """FLUX's transformer without the guidance embedding, as in schnell."""
    half = (shape.head - shape.head // 8) // 2
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=shape.double_blocks,
        num_single_layers=shape.single_blocks,
        attention_head_dim=shape.head,
        num_attention_heads=shape.heads,
        joint_attention_dim=shape.t5_width,
        pooled_projection_dim=shape.width,
        guidance_embeds=False,
        axes_dims_rope=(shape.head // 8, half, half),
    )


def as_velocity(transformer: FluxTransformer2DModel) -> VelocityNetwork:
    """diffusers' transformer, which the recipe trains and exports, called as the engine calls its own."""

    def predict(img: Tensor, txt: Tensor, ids: Tensor, timesteps: Tensor, y: Tensor) -> Tensor:
        positions, texts = ids.to(img.device), txt.shape[1]
        velocity: Tensor = transformer(
            hidden_states=img,
            encoder_hidden_states=txt,
            pooled_projections=y,
            timestep=timesteps.to(img.dtype),
            img_ids=positions[texts:],
            txt_ids=positions[:texts],
            return_dict=False,
        )[0]
        return velocity

    return predict
