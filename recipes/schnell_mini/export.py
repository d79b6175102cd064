"""A finished model as a stock diffusers folder in half precision."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from schnell_mini.adapter_block import ADAPTER_BLOCKS
from schnell_mini.key_value_blocks import KEY_VALUE_BLOCKS
from schnell_mini.position_weights import POSITION_BLOCKS
from schnell_mini.sampling import MiniPipeline
from schnell_mini.tokens import MAX_TOKENS

DRAW_SCALE = 4
#: The feed-forward layers of the last two single blocks: what the bundled LoRAs have, too. A LoRA that also changes
#: position weights or key-value blocks breaks the picture.
LORA_LAYERS = r"single_transformer_blocks\.({}|{})\.(proj_mlp|proj_out)"
LORA_RANK = 16
#: The blocks with computed weights, up to this single block: their large constants cancel each other, which rounding
#: breaks. The trained blocks behind them are quantized as FLUX's are.
EXACT_LAYERS = r"double_blocks\.|single_blocks\.[0-{}]\."


def export_model(pipeline: MiniPipeline, folder: Path, *, computed: bool = True) -> None:
    """Write the model beside `folder` first, then rename it; an earlier one is replaced.

    `computed`: some blocks hold computed weights, which LoRAs and quantization must leave alone.
    """
    fresh = folder.with_name(folder.name + ".part")
    shutil.rmtree(fresh, ignore_errors=True)
    clip_tokenizer, t5_tokenizer = pipeline.text.tokenizers
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=pipeline.vae,
        text_encoder=pipeline.text.clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=pipeline.text.t5,
        tokenizer_2=t5_tokenizer,
        transformer=pipeline.transformer,
    ).to(torch.float16).save_pretrained(fresh)
    last = len(pipeline.transformer.single_transformer_blocks) - ADAPTER_BLOCKS
    convention: dict[str, int | str | bool] = {"draw_scale": DRAW_SCALE, "sequence_length": MAX_TOKENS}
    if computed:
        convention["lora_layers"] = LORA_LAYERS.format(last - 1, last)
        convention["lora_rank"] = LORA_RANK
        # the noise chooses the placement (`placement`)
        convention["noise_places"] = True
        convention["exact_layers"] = EXACT_LAYERS.format(POSITION_BLOCKS + KEY_VALUE_BLOCKS - 1)
    (fresh / "schnell.json").write_text(json.dumps(convention) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
