"""The few-step stage: progressive distillation (Salimans and Ho 2022, arXiv:2202.00512) on the levels of four steps.

After flow matching, one large step from noise lands on a mean of all pictures that fit. Here the network learns, from
each of the four levels, the straight way to where its own earlier self arrives in two steps. FLUX's network is not told
how far it is to step, so the way leads to the finished picture, and half of each batch stays with the data.
"""

from random import Random
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional

from schnell.engine.denoise import predict_velocity
from schnell_mini.learned.transformer import BATCH, Captioned, TransformerLearner, sample_captioned
from schnell_mini.loop import MovingAverage, mixed_precision, optimizer_step, rate_factor
from schnell_mini.networks import as_velocity
from schnell_mini.sampling import start_drawings

RATE = 2e-4
AVERAGED = 0.995
#: The noise levels of four steps; a step down from each is learned.
LEVELS = (1.0, 0.75, 0.5, 0.25)
#: The share of a batch that stays with the data's own velocity, which keeps the looks and colours true.
FLOW_SHARE = 0.5
TEACHER_STEPS = 2


class FewStepLearner(TransformerLearner):
    """Teaches a trained transformer to reach in one step what its own average reaches in several."""

    name = "few steps"

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        teacher: FluxTransformer2DModel,
        canvases: list[Captioned],
        device: torch.device,
    ) -> None:
        self.transformer, self.canvases, self.device = transformer.to(device).train(), canvases, device
        self.batch = BATCH[device.type]
        self.teacher = teacher.to(device).requires_grad_(requires_grad=False).eval()
        self.rng, self.done = Random(0), 0
        self.generator = torch.Generator("cpu").manual_seed(0)
        self.average = MovingAverage(transformer, AVERAGED)
        trained = [p for p in transformer.parameters() if p.requires_grad]
        groups = [{"params": trained, "base": RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)

    def update(self, progress: float) -> Tensor:
        """One optimizer step; the mean squared error of the velocity."""
        canvas, clean, prompts = sample_captioned(self.canvases, self.batch, self.rng, self.generator, self.device)
        noise = torch.randn(clean.shape, generator=self.generator).to(self.device)
        levels = [self.rng.choice(LEVELS) for _ in range(len(clean))]
        level = torch.tensor(levels).to(self.device)[:, None, None]
        noisy = torch.lerp(clean, noise, level)
        wanted = self.teach(noisy, prompts, levels, canvas)
        kept = torch.tensor([self.rng.random() < FLOW_SHARE for _ in range(len(clean))]).to(self.device)
        wanted = torch.where(kept[:, None, None], noise - clean, wanted)
        drawings = start_drawings(prompts, noisy, [(one, 0.0) for one in levels], canvas.grid)
        with mixed_precision(self.device):
            velocity = predict_velocity(as_velocity(self.transformer), drawings)
        loss = functional.mse_loss(velocity, wanted)
        optimizer_step(self.optimizer, loss, self.transformer, rate_factor(progress, self.done, 50, 0.5, 0.03))
        self.average.add(self.transformer)
        self.done += 1
        return loss.detach()

    @torch.no_grad()
    def teach(self, noisy: Tensor, prompts: list[Any], levels: list[float], canvas: Captioned) -> Tensor:
        """The one velocity that leads from `noisy` to where the teacher arrives in several equal steps."""
        now = noisy
        for step in range(TEACHER_STEPS):
            here = [one * (1 - step / TEACHER_STEPS) for one in levels]
            drawings = start_drawings(prompts, now, [(one, 0.0) for one in here], canvas.grid)
            with mixed_precision(self.device):
                velocity = predict_velocity(as_velocity(self.teacher), drawings)
            now = now - torch.tensor(levels).to(now)[:, None, None] / TEACHER_STEPS * velocity
        return (noisy - now) / torch.tensor(levels).to(now)[:, None, None]
