"""Model folders for tests: randomly initialised FLUX networks of any width, in the stock diffusers form."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

TEXT_WIDTH = 32
WORDS = ("<pad>", "</s>", "<unk>", "red", "apple", "on", "a", "blue", "background", "green", "tree", "car")


def write_flux_folder(
    path: Path, *, heads: int = 2, head_width: int = 16, blocks: int = 1, single_blocks: int = 1
) -> Path:
    """Save a FLUX pipeline with random weights at `path`, and give the path."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=_vae(),
        text_encoder=CLIPTextModel(_clip_config(len(tokenizer))),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(_t5_config(len(tokenizer))),
        tokenizer_2=tokenizer,
        transformer=_transformer(heads, head_width, blocks, single_blocks),
    ).save_pretrained(path)
    return path


def _transformer(heads: int, head_width: int, blocks: int, single_blocks: int) -> FluxTransformer2DModel:
    rows = head_width // 4 // 2 * 2
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=blocks,
        num_single_layers=single_blocks,
        attention_head_dim=head_width,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=(head_width - 2 * rows, rows, rows),
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.4,
        shift_factor=0.1,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )


def _clip_config(vocabulary: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=TEXT_WIDTH,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )


def _t5_config(vocabulary: int) -> T5Config:
    return T5Config(
        vocab_size=vocabulary, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
