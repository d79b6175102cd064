"""The file that a training leaves: keys as diffusers and PEFT write them, metadata that say what it is."""

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from schnell.engine.receipt import engine_version
from schnell.errors import TrainingError


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
            "software": f"schnell {engine_version()}",
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


@dataclass(frozen=True, slots=True)
class Identity:
    """What must not change between a training and its continuation."""

    base_model_sha256: str
    trigger: str
    rank: int


@dataclass(frozen=True, slots=True)
class SavedTraining:
    """Steps and seconds spent, the factors, the optimizer's state, and the random generator's."""

    identity: Identity
    step: int
    seconds: float
    factors: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    generator: Tensor


def state_path(out: Path) -> Path:
    """Where the state of the training that writes `out` lies; it may be deleted once no one wants to go on."""
    return out.with_name(f"{out.name}.state")


def save_training(path: Path, saved: SavedTraining) -> None:
    """Write the state; a stop in the middle leaves the one before."""
    buffer = io.BytesIO()
    torch.save(
        {
            "identity": asdict(saved.identity),
            "step": saved.step,
            "seconds": saved.seconds,
            "factors": dict(saved.factors),
            "optimizer": dict(saved.optimizer),
            "generator": saved.generator,
        },
        buffer,
    )
    replace_file(path, buffer.getvalue())


def load_training(path: Path, identity: Identity) -> SavedTraining | None:
    """The saved training at `path`, None if there is none.

    Raises:
        TrainingError: the file is damaged, or another model, trigger word or rank was trained there.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        saved = SavedTraining(**{**content, "identity": Identity(**content["identity"])})
    except (OSError, RuntimeError, EOFError, TypeError, KeyError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path} is damaged: delete it and train without --resume") from error
    before, now = asdict(saved.identity), asdict(identity)
    changed = [f"{name} was {before[name]}, is {now[name]}" for name in now if before[name] != now[name]]
    if changed:
        raise TrainingError(f"{path} cannot be continued: {'; '.join(changed)}; train without --resume")
    return saved
