"""Training of CLIP as a classifier, before any drawing: which icon and which background a caption means.

An encoder trained from nothing as part of the flow model would see each name too rarely. Here it is trained by cross
entropy on its pooled output, the one that FLUX reads.
"""

from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel

from schnell_mini.caption_dataset import CaptionBatch, CaptionDataset
from schnell_mini.captions import COLOURS
from schnell_mini.loop import mixed_precision, optimizer_step, rate_factor

CLIP_RATE = 1.5e-3
BATCH = {"cuda": 768, "cpu": 64}


@dataclass(frozen=True)
class Classification:
    """Logits over icons `[B, N]` and colours `[B, 14]`, and CLIP's pooled vectors that they come from `[B, D]`."""

    icons: Tensor
    colours: Tensor
    pooled: Tensor


class ClipClassifier(nn.Module):
    """CLIP with two linear heads on its pooled output, which are not kept after training."""

    def __init__(self, encoder: CLIPTextModel, width: int, icons: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.icon, self.colour = nn.Linear(width, icons), nn.Linear(width, len(COLOURS))

    def forward(self, ids: Tensor) -> Classification:
        """Classify captions by their token ids `[B, L]`."""
        pooled = self.encoder(input_ids=ids).pooler_output
        return Classification(self.icon(pooled), self.colour(pooled), pooled)

    def groups(self, base: float) -> list[dict[str, Any]]:
        """Parameter groups: word embeddings get three times the learning rate `base`, since each is seen rarely."""
        words = [value for key, value in self.named_parameters() if "token_embedding" in key]
        rest = [value for key, value in self.named_parameters() if "token_embedding" not in key]
        return [{"params": words, "base": 3 * base}, {"params": rest, "base": base}]


def classification_loss(output: Classification, batch: CaptionBatch) -> Tensor:
    """Cross entropy of the icon, and half of the colour's."""
    loss = functional.cross_entropy(output.icons.float(), batch.icons)
    return loss + 0.5 * functional.cross_entropy(output.colours.float(), batch.colours)


class ClipLearner:
    """Trains the classifier with CLIP in it."""

    name = "clip"

    def __init__(self, classifier: ClipClassifier, dataset: CaptionDataset, device: torch.device) -> None:
        self.classifier, self.dataset, self.device = classifier.to(device).train(), dataset, device
        self.rng, self.done = Random(0), 0
        self.optimizer = torch.optim.AdamW(
            classifier.groups(CLIP_RATE), lr=CLIP_RATE, betas=(0.9, 0.98), weight_decay=0.01
        )

    def update(self, progress: float) -> Tensor:
        """One optimizer step; the loss."""
        batch = self.dataset.sample(self.rng, BATCH[self.device.type])
        with mixed_precision(self.device):
            output = self.classifier(batch.ids)
        loss = classification_loss(output, batch)
        optimizer_step(self.optimizer, loss, self.classifier, rate_factor(progress, self.done, 200, 0.3, 0.02))
        self.done += 1
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and count of updates."""
        return {"classifier": self.classifier.state_dict(), "optimizer": self.optimizer.state_dict(), "done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
        self.rng = Random(self.done)
