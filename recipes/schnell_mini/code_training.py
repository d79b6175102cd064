"""CLIP and the transformer's text embedder are trained together to turn a caption into codes of icon and background.

Many captions fit several icons. The codes with the least squared error would then be a mixture, and a mixture looks
like no icon. So a frozen copy of the classifier (`text_classifier`) first picks the icon that such a caption means most
likely, always the same one, and the codes of that icon are the target. Icons that look alike have codes so close
together that a small error confuses them. A second loss therefore asks the codes to be nearer to their own icon's than
to any other's, as in prototypical networks (Snell et al. 2017, arXiv:1703.05175).
"""

from copy import deepcopy
from dataclasses import replace
from random import Random
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from schnell_mini import layout
from schnell_mini.appearance_codes import AppearanceCodes
from schnell_mini.caption_dataset import CaptionBatch, CaptionDataset
from schnell_mini.code_conditioning import Codebook
from schnell_mini.loop import AveragedLearner, MovingAverage, mixed_precision, optimizer_step, rate_factor
from schnell_mini.text_classifier import BATCH, ClipClassifier, classification_loss

CLASSIFIER_RATE = 1e-3
EMBEDDER_RATE = 1e-3
AVERAGED = 0.999
SHARPNESS = 40.0


def prepare_embedder(embedder: Any) -> None:
    """Start near codes that are all zero, and near zero in the channels behind them."""
    with torch.no_grad():
        embedder.linear_2.bias.zero_()
        embedder.linear_2.bias[: layout.ALL_CODES] = layout.CODE_OFFSET
        embedder.linear_2.weight[layout.ALL_CODES :] *= 0.1


def read_codes(embedded: Tensor) -> Tensor:
    """The codes `[B, 187]` that an embedding `[B, D]` holds."""
    return (functional.silu(embedded[:, : layout.ALL_CODES]) - layout.CODE_OFFSET) / layout.CODE_SPREAD


def code_errors(embedded: Tensor, batch: CaptionBatch, codebook: Codebook) -> tuple[Tensor, Tensor, Tensor]:
    """Squared errors of an embedding: of the appearance (weighted and plain), the background, the unused channels."""
    read = read_codes(embedded)
    appearance, background = codebook.appearance, codebook.background.codes[batch.colours]
    wrong = (read[:, : layout.APPEARANCE_CODES] - appearance.codes[batch.icons]).pow(2)
    return (
        (wrong * appearance.weights).sum(1).mean() + wrong.mean(),
        (read[:, layout.APPEARANCE_CODES :] - background).pow(2).mean(),
        embedded[:, layout.ALL_CODES :].pow(2).mean(),
    )


def nearness_loss(embedded: Tensor, batch: CaptionBatch, appearance: AppearanceCodes) -> Tensor:
    """Cross entropy of the right icon, where an icon's logit is minus the squared distance of its codes."""
    scale = appearance.weights.sqrt()
    read = read_codes(embedded)[:, : layout.APPEARANCE_CODES] * scale
    squares = torch.cdist(read, appearance.codes * scale).square()
    return functional.cross_entropy(-SHARPNESS * squares, batch.icons)


class CodeLearner(AveragedLearner):
    """Trains classifier and text embedder; the classifier as it was before names the icons."""

    name = "codes"
    kept = "trained"

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        classifier: ClipClassifier,
        dataset: CaptionDataset,
        codebook: Codebook,
        device: torch.device,
    ) -> None:
        self.classifier, self.dataset, self.device, self.done = classifier.to(device).train(), dataset, device, 0
        self.frozen = deepcopy(self.classifier).requires_grad_(requires_grad=False).eval()
        self.codebook = codebook.to(device)
        self.embedder = transformer.time_text_embed.text_embedder.to(device)
        prepare_embedder(self.embedder)
        self.rng, self.trained = Random(77), nn.ModuleList([self.classifier, self.embedder])
        self.average = MovingAverage(self.trained, AVERAGED)
        embedder = {"params": list(self.embedder.parameters()), "base": EMBEDDER_RATE}
        groups = [*classifier.groups(CLASSIFIER_RATE), embedder]
        self.optimizer = torch.optim.AdamW(groups, lr=CLASSIFIER_RATE, betas=(0.9, 0.98), weight_decay=0.01)

    def update(self, progress: float) -> Tensor:
        """One optimizer step; the loss."""
        batch = self.pick_icons(self.dataset.sample(self.rng, BATCH[self.device.type]))
        with mixed_precision(self.device):
            output = self.classifier(batch.ids)
            embedded = self.embedder(output.pooled)
        appearance, background, unused = code_errors(embedded.float(), batch, self.codebook)
        nearness = nearness_loss(embedded.float(), batch, self.codebook.appearance)
        loss = classification_loss(output, batch) + 16 * appearance + 0.25 * nearness + background + 0.1 * unused
        optimizer_step(self.optimizer, loss, self.trained, rate_factor(progress, self.done, 200, 0.3, 0.01))
        self.average.add(self.trained)
        self.done += 1
        return loss.detach()

    @torch.no_grad()
    def pick_icons(self, batch: CaptionBatch) -> CaptionBatch:
        """The batch with the most likely icon for each caption that fits several."""
        with mixed_precision(self.device):
            likely = self.frozen(batch.ids).icons.argmax(1)
        return replace(batch, icons=torch.where(batch.unambiguous, batch.icons, likely))

    def finish(self) -> None:
        """Put the averaged weights in place."""
        self.average.copy_to(self.trained)
        self.trained.eval()

    def state(self) -> dict[str, Any]:
        """Weights, their average, the frozen classifier, optimizer and count of updates."""
        return super().state() | {"frozen": self.frozen.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        super().restore(state)
        self.frozen.load_state_dict(state["frozen"])
