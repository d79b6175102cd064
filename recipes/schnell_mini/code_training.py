"""CLIP and the transformer's own text embedder learn together to turn a caption into codes of looks and background.

Many captions fit several icons. The codes with the least error would then be a mixture, and a mixture is no icon. So
the reader that has learnt to name icons (`text`) first says which one a caption means most likely. Its answer is the
same each time, and the codes commit to it. Icons that look alike have codes close together, which an error too small to
matter elsewhere would mix up: the codes are also asked to be nearer to their icon's than to any other's, as in
prototypical networks (Snell et al. 2017, arXiv:1703.05175).
"""

from copy import deepcopy
from random import Random
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from schnell_mini import layout
from schnell_mini.appearance_codes import Looks
from schnell_mini.caption_dataset import Bank, Batch
from schnell_mini.code_conditioning import Known
from schnell_mini.loop import Average, precision, rate, step
from schnell_mini.text_classifier import BATCH, ClipReader, naming_loss

READER_RATE = 1e-3
EMBEDDER_RATE = 1e-3
AVERAGED = 0.999
SHARPNESS = 40.0


def prepare_embedder(embedder: Any) -> None:
    """Start where the codes are all zero and the channels behind them are silent."""
    with torch.no_grad():
        embedder.linear_2.bias.zero_()
        embedder.linear_2.bias[: layout.TIME_CODE] = layout.LOOK_OFFSET
        embedder.linear_2.weight[layout.TIME_CODE :] *= 0.1


def read_codes(embedded: Tensor) -> Tensor:
    """The codes `[N, 187]` that the transformer will read from an embedding."""
    return (functional.silu(embedded[:, : layout.TIME_CODE]) - layout.LOOK_OFFSET) / layout.LOOK_SPREAD


def code_errors(embedded: Tensor, batch: Batch, known: Known) -> tuple[Tensor, Tensor, Tensor]:
    """Errors of looks (by their strength, and all alike), of the background, and of what should be silent."""
    read = read_codes(embedded)
    looks, colours = known.looks, known.palette.codes[batch.colours]
    wrong = (read[:, : layout.LOOKS] - looks.codes[batch.icons]).pow(2)
    return (
        (wrong * looks.weights).sum(1).mean() + wrong.mean(),
        (read[:, layout.LOOKS :] - colours).pow(2).mean(),
        embedded[:, layout.TIME_CODE :].pow(2).mean(),
    )


def nearness_loss(embedded: Tensor, batch: Batch, looks: Looks) -> Tensor:
    """Cross entropy of the icon whose codes are nearest to those that were read."""
    scale = looks.weights.sqrt()
    read = read_codes(embedded)[:, : layout.LOOKS] * scale
    squares = torch.cdist(read, looks.codes * scale).square()
    return functional.cross_entropy(-SHARPNESS * squares, batch.icons)


class CodeLearner:
    """Trains CLIP through its reader and the text embedder; the reader as it was before names the icons."""

    name = "codes"

    def __init__(
        self, transformer: FluxTransformer2DModel, reader: ClipReader, bank: Bank, known: Known, device: torch.device
    ) -> None:
        self.reader, self.bank, self.device, self.done = reader.to(device).train(), bank, device, 0
        self.namer = deepcopy(self.reader).requires_grad_(requires_grad=False).eval()
        self.known = known.to(device)
        self.embedder = transformer.time_text_embed.text_embedder.to(device)
        prepare_embedder(self.embedder)
        self.rng, self.both = Random(77), nn.ModuleList([self.reader, self.embedder])
        self.average = Average(self.both, AVERAGED)
        groups = [*reader.groups(READER_RATE), {"params": list(self.embedder.parameters()), "base": EMBEDDER_RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=READER_RATE, betas=(0.9, 0.98), weight_decay=0.01)

    def update(self, progress: float) -> Tensor:
        """One optimizer step; the loss."""
        batch = self.commit(self.bank.draw(self.rng, BATCH[self.device.type]))
        with precision(self.device):
            answer = self.reader(batch.ids)
            embedded = self.embedder(answer.pooled)
        looks, background, silent = code_errors(embedded.float(), batch, self.known)
        nearness = nearness_loss(embedded.float(), batch, self.known.looks)
        loss = naming_loss(answer, batch) + 16 * looks + 0.25 * nearness + background + 0.1 * silent
        step(self.optimizer, loss, self.both, rate(progress, self.done, 200, 0.3, 0.01))
        self.average.add(self.both)
        self.done += 1
        return loss.detach()

    @torch.no_grad()
    def commit(self, batch: Batch) -> Batch:
        """The batch with the most likely icon wherever several would do."""
        with precision(self.device):
            likely = self.namer(batch.ids).icons.argmax(1)
        return Batch(batch.ids, torch.where(batch.sure, batch.icons, likely), batch.colours, batch.sure)

    def finish(self) -> None:
        """Put the averaged weights in place."""
        self.average.copy_to(self.both)
        self.both.eval()

    def state(self) -> dict[str, Any]:
        """Weights, their average, who names the icons, optimizer and count of updates."""
        return {
            "both": self.both.state_dict(),
            "average": self.average.values,
            "namer": self.namer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        self.both.load_state_dict(state["both"])
        self.average.values = {name: value.to(self.device) for name, value in state["average"].items()}
        self.namer.load_state_dict(state["namer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = self.average.count = state["done"]
        self.rng = Random(self.done)
