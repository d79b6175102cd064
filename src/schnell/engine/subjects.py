"""What a small model knows, so that a prompt about anything else can be told so.

A model folder may hold `subjects.safetensors`: the names of all that its model was taught, and for each the direction
in which its name moves the transformer's conditioning (`vector_in`, after SiLU) away from `centre`. A prompt whose
direction is far from all of these is about none of them; the transformer then draws a mixture, which looks like
nothing. FLUX.1's folders have no such file: nobody knows all that it knows.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from schnell.errors import ModelFolderError

FILE: Final = "subjects.safetensors"
#: The cosine below which a prompt is far from a subject. The embedded model's names are at 0.98 and more with a ground
#: and a look named beside them, keywords at 0.96 (median); other languages and things that no icon shows lie between
#: 0.25 and 0.83, most of them.
NEAR: Final = 0.85


@dataclass(frozen=True, slots=True)
class Subjects:
    """Unit `directions` (subjects, channels) of the conditioning's first channels around `centre` (channels)."""

    names: tuple[str, ...]
    kind: str
    directions: Tensor
    centre: Tensor

    def nearest(self, embedder: nn.Module, pooled: Tensor) -> tuple[str, float]:
        """The subject nearest to a prompt's pooled vector (CLIP width), and the cosine between them."""
        with torch.inference_mode():
            channels = F.silu(embedder(pooled[None]).float())[0, : len(self.centre)].cpu()
            cosines = self.directions @ F.normalize(channels - self.centre, dim=0)
        best = int(cosines.argmax())
        return self.names[best], float(cosines[best])

    def warning(self, model: str, embedder: nn.Module, pooled: Tensor) -> str | None:
        """What the caller should be told of a prompt that is far from every subject; None of the others."""
        name, cosine = self.nearest(embedder, pooled)
        if cosine >= NEAR:
            return None
        return f"{model} knows {len(self.names):,} {self.kind}; nearest: '{name}'"


def read_subjects(folder: Path) -> Subjects | None:
    """The subjects of the model in `folder`; None if it has no such file.

    Raises:
        ModelFolderError: the file is not one that `write_subjects` of the recipe writes.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            names, kind = tuple(json.loads(about["names"])), about["kind"]
            directions, centre = file.get_tensor("directions").float(), file.get_tensor("centre").float()
    except Exception as error:  # safetensors raises an Exception subclass of its own for each way to be damaged
        raise ModelFolderError(f"{path} cannot be read: {error}") from error
    if directions.shape != (len(names), *centre.shape):
        raise ModelFolderError(f"{path} has {len(names)} names and directions of shape {tuple(directions.shape)}")
    return Subjects(names, kind, F.normalize(directions, dim=1), centre)
