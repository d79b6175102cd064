"""A finished model as a stock diffusers folder in half precision."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from schnell_mini.adapter_block import LOOK_BLOCKS
from schnell_mini.sampling import Painter
from schnell_mini.tokens import LENGTH

DRAW_SCALE = 4
#: The last single block: a LoRA that also moves places or keys loses the picture at once, and one on the block before
#: it hears the noise and draws a mosaic.
LORA_LAYERS = r"single_transformer_blocks\.{}\.proj_out"


def export_model(painter: Painter, folder: Path) -> None:
    """Write the folder beside `folder` first, then put it in its place."""
    fresh = folder.with_name(folder.name + ".part")
    shutil.rmtree(fresh, ignore_errors=True)
    clip_tokenizer, t5_tokenizer = painter.text.tokenizers
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=painter.vae,
        text_encoder=painter.text.clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=painter.text.t5,
        tokenizer_2=t5_tokenizer,
        transformer=painter.transformer,
    ).to(torch.float16).save_pretrained(fresh)
    last = len(painter.transformer.single_transformer_blocks) - LOOK_BLOCKS
    convention = {
        "draw_scale": DRAW_SCALE,
        "sequence_length": LENGTH,
        "lora_layers": LORA_LAYERS.format(last),
    }
    (fresh / "schnell.json").write_text(json.dumps(convention) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
