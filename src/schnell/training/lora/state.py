"""A training on disk: everything needed to go on as if it had never stopped."""

import io
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schnell.training.errors import TrainingError
from schnell.training.lora.lora_file import replace_file


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
