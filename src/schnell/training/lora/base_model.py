from dataclasses import dataclass
from typing import Any

import torch

from schnell.engine.loading import load_network
from schnell.engine.precision import (Precision, choose_precision)
from schnell.models.fingerprint import weights_sha256
from schnell.models.folder import ModelFolder


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The model that a LoRA is trained for: where it lies, and in which precision and where it runs."""

    folder: ModelFolder
    precision: Precision
    device: torch.device

    @property
    def sha256(self) -> str:
        """The hash of the transformer's weights."""
        return weights_sha256(self.folder.path)

    def load(self, part: str) -> Any:
        """One of its networks, frozen: `transformer`, `vae`, `text_encoder` or `text_encoder_2`."""
        return load_network(self.folder.path, part, self.precision, self.device)


def place_model(folder: ModelFolder, device: torch.device) -> BaseModel:
    """The model as it is trained on this device: bfloat16 where that is native, float32 elsewhere."""
    return BaseModel(folder, choose_precision(device, go_fast=True), device)
