"""The files that a training writes: the LoRA, and beside it the state from which the training can go on."""

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from schnell.errors import TrainingError
from schnell.provenance.receipt import engine_version


@dataclass(frozen=True, slots=True)
class LoraOrigin:
    """What a LoRA was trained on and how, as the metadata of its file says it. `steps` counts optimizer steps."""

    trigger: str
    base_model: str
    base_model_sha256: str
    rank: int
    steps: int

    def to_metadata(self) -> dict[str, str]:
        """The metadata of a safetensors file, whose values are all strings."""
        return {
            "format": "pt",  # transformers refuses a file without it
            "trigger_words": json.dumps([self.trigger]),
            "base_model": self.base_model,
            "base_model_sha256": self.base_model_sha256,
            "rank": str(self.rank),
            "alpha": str(self.rank),
            "steps": str(self.steps),
            "software": f"schnell {engine_version()}",
        }


def write_lora(path: Path, factors: Mapping[str, Tensor], origin: LoraOrigin) -> None:
    """Write factors, named as by `read_factors`, in float16. Another process never sees half a file."""
    tensors = {name: factor.to(torch.float16).contiguous() for name, factor in factors.items()}
    replace_file(path, save(tensors, metadata=origin.to_metadata()))


def read_lora(path: Path) -> dict[str, Tensor]:
    """The factors in a file of `write_lora`, on the CPU."""
    return load_file(path)


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to a file beside `path`, then rename it to `path`: a stop on the way leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_bytes(data)
    fresh.replace(path)


@dataclass(frozen=True, slots=True)
class TrainingIdentity:
    """What must be the same when a saved training goes on."""

    base_model_sha256: str
    trigger: str
    rank: int


@dataclass(frozen=True, slots=True)
class SavedTraining:
    """The state of a training: steps and seconds spent, factors, and the states of the optimizer and the generator."""

    identity: TrainingIdentity
    step: int
    seconds: float
    factors: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    generator: Tensor


def state_path(out: Path) -> Path:
    """The file for the state of the training that writes `out`. Once nobody wants to go on, it can be deleted."""
    return out.with_name(f"{out.name}.state")


def save_training(path: Path, saved: SavedTraining) -> None:
    """Write the state to `path`; a stop on the way leaves the state saved before."""
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


def load_training(path: Path, identity: TrainingIdentity) -> SavedTraining | None:
    """The saved training at `path`, None if there is none.

    Raises:
        TrainingError: the file is damaged, or another model, trigger word or rank was trained there.
    """
    if not path.exists():
        return None
    try:
        # weights_only: a state from someone else must not run the code that a pickle can hold
        content = torch.load(path, map_location="cpu", weights_only=True)
        saved = SavedTraining(**{**content, "identity": TrainingIdentity(**content["identity"])})
    except (OSError, RuntimeError, EOFError, TypeError, KeyError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path} is damaged: delete it and train without --resume") from error
    before, now = asdict(saved.identity), asdict(identity)
    changed = [f"{name} was {before[name]}, is {now[name]}" for name in now if before[name] != now[name]]
    if changed:
        raise TrainingError(f"{path} cannot be continued: {'; '.join(changed)}; train without --resume")
    return saved
