"""The file that a training leaves: keys as diffusers and PEFT write them, metadata that say what it is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from schnell.engine.version import ENGINE_VERSION


@dataclass(frozen=True, slots=True)
class LoraOrigin:
    """What a LoRA was trained on and how; goes into the file's metadata."""

    trigger: str
    base_model: str
    base_model_sha256: str
    rank: int
    steps: int

    def to_metadata(self) -> dict[str, str]:
        """Safetensors metadata: all values are strings."""
        return {
            "format": "pt",
            "trigger_words": json.dumps([self.trigger]),
            "base_model": self.base_model,
            "base_model_sha256": self.base_model_sha256,
            "rank": str(self.rank),
            "alpha": str(self.rank),
            "steps": str(self.steps),
            "software": f"schnell {ENGINE_VERSION}",
        }


def write_lora(path: Path, factors: Mapping[str, Tensor], origin: LoraOrigin) -> None:
    """Write the factors in half precision; a reader never sees half a file."""
    tensors = {name: factor.to(torch.float16).contiguous() for name, factor in factors.items()}
    replace_file(path, save(tensors, metadata=origin.to_metadata()))


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, then put it in its place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_bytes(data)
    fresh.replace(path)
