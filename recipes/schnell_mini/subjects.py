"""What the model knows, as `schnell.engine.subjects` reads it: each icon's name and where it moves the conditioning.

A prompt's embedding holds the codes of the icon that it means, after SiLU, around a constant. A name's own codes are a
direction from that constant; words around the name hardly turn it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional

from schnell.engine.subjects import FILE
from schnell_mini.layout import APPEARANCE_CODES, CODE_OFFSET
from schnell_mini.sampling import MiniPipeline

BATCH = 64
_LARGEST = 127


@torch.no_grad()
def write_subjects(pipeline: MiniPipeline, names: Sequence[str], folder: Path, centre: float = CODE_OFFSET) -> Path:
    """Write `subjects.safetensors` for these names into the model's folder; a byte for each number.

    `centre` is where the embedding holds a code of zero, after SiLU.
    """
    embedder = pipeline.transformer.time_text_embed.text_embedder
    rows = []
    for start in range(0, len(names), BATCH):
        pooled = torch.stack([each.pooled for each in pipeline.text.encode(names[start : start + BATCH])])
        rows.append(functional.silu(embedder(pooled).float())[:, :APPEARANCE_CODES].cpu() - centre)
    directions = functional.normalize(torch.cat(rows), dim=1)
    scaled = directions * _LARGEST / directions.abs().amax(1, keepdim=True)
    path = folder / FILE
    tensors = {"directions": scaled.round().to(torch.int8), "centre": torch.full((APPEARANCE_CODES,), centre)}
    save_file(tensors, path, {"kind": "icons", "names": json.dumps(list(names))})
    return path
