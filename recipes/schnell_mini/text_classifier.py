"""CLIP learns, before any drawing, which icon a text means.

An encoder that starts from nothing inside a flow model sees each name too rarely. Here a caption is answered at once:
which of the icons and which background (cross entropy), read where FLUX pools CLIP.
"""

from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel

from schnell_mini.caption_dataset import Bank, Batch
from schnell_mini.captions import COLOURS
from schnell_mini.loop import precision, rate, step

CLIP_RATE = 1.5e-3
BATCH = {"cuda": 768, "cpu": 64}


@dataclass(frozen=True)
class Answer:
    """What a reader takes from a text: logits over icons and colours, and the pooled vector behind them."""

    icons: Tensor
    colours: Tensor
    pooled: Tensor


class ClipReader(nn.Module):
    """CLIP with throw-away heads on its pooled output."""

    def __init__(self, encoder: CLIPTextModel, width: int, icons: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.icon, self.colour = nn.Linear(width, icons), nn.Linear(width, len(COLOURS))

    def forward(self, ids: Tensor) -> Answer:
        """Read ids `[N, L]`."""
        pooled = self.encoder(input_ids=ids).pooler_output
        return Answer(self.icon(pooled), self.colour(pooled), pooled)

    def groups(self, base: float) -> list[dict[str, Any]]:
        """Parameters with their rates: words are seen rarely and learn three times as fast."""
        words = [value for key, value in self.named_parameters() if "token_embedding" in key]
        rest = [value for key, value in self.named_parameters() if "token_embedding" not in key]
        return [{"params": words, "base": 3 * base}, {"params": rest, "base": base}]


def naming_loss(answer: Answer, batch: Batch) -> Tensor:
    """Cross entropies of icon and colour."""
    loss = functional.cross_entropy(answer.icons.float(), batch.icons)
    return loss + 0.5 * functional.cross_entropy(answer.colours.float(), batch.colours)


class TextLearner:
    """Trains CLIP through its reader."""

    name = "clip"

    def __init__(self, reader: ClipReader, bank: Bank, device: torch.device) -> None:
        self.reader, self.bank, self.device = reader.to(device).train(), bank, device
        self.rng, self.done = Random(0), 0
        self.optimizer = torch.optim.AdamW(reader.groups(CLIP_RATE), lr=CLIP_RATE, betas=(0.9, 0.98), weight_decay=0.01)

    def update(self, progress: float) -> Tensor:
        """One optimizer step; the loss."""
        batch = self.bank.draw(self.rng, BATCH[self.device.type])
        with precision(self.device):
            answer = self.reader(batch.ids)
        loss = naming_loss(answer, batch)
        step(self.optimizer, loss, self.reader, rate(progress, self.done, 200, 0.3, 0.02))
        self.done += 1
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and count of updates."""
        return {"reader": self.reader.state_dict(), "optimizer": self.optimizer.state_dict(), "done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        self.reader.load_state_dict(state["reader"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
        self.rng = Random(self.done)
