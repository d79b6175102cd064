"""Fitting a bundled LoRA's factors on single tokens of recorded pictures."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from random import Random

import torch
from torch import Tensor

from schnell.spec import DEFAULT_LORA_SCALE
from schnell_mini.last_blocks import BlockInputs, LastBlocks
from schnell_mini.loop import StageBudget, mixed_precision
from schnell_mini.lora_canvases import Examples

BATCH = 2048
WARM_UP = 50
FINAL_RATE = 0.03
#: From here on absolute errors count instead of squared ones: medians. A line that may lie here or there is drawn in
#: one place or left away, and not in both as a grey.
ABSOLUTE_FROM = 0.5
#: The part of tokens of plain ground that is trained on; of all others, all are.
GROUND_SHARE = 0.4
#: The scales that a LoRA is trained at, each with its share: a look has to be one at each, and grounds right.
SCALES = ((DEFAULT_LORA_SCALE, 0.55), (1.0, 0.25), (1.5, 0.2))
#: How much farther from the base than painted, for each unit of scale beyond the default, an object is wanted.
STRONGER = 0.2

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class TokenPool:
    """Tokens of all pictures: what the blocks hear (`modulations` by picture), what is wanted, where the look paints.

    `picture` `[N]` is the number of each token's picture, `chosen` the tokens that are trained on.
    """

    inputs: BlockInputs
    wanted: Tensor
    painted: Tensor
    picture: Tensor
    chosen: Tensor

    def take(self, tokens: Tensor) -> BlockInputs:
        """What the blocks hear of these tokens."""
        own = self.inputs
        modulations = own.modulations[self.picture[tokens]]
        return BlockInputs(own.tokens[tokens], own.attention[tokens], modulations, own.clean[tokens])

    def want(self, tokens: Tensor, scale: float) -> Tensor:
        """The wanted latents of these tokens at a scale: beyond the default, objects go a little farther."""
        wanted = self.wanted[tokens]
        farther = STRONGER * (scale - DEFAULT_LORA_SCALE) * self.painted[tokens, None]
        return wanted + farther * (wanted - self.inputs.clean[tokens])


def pool_tokens(examples: Sequence[Examples]) -> TokenPool:
    """All tokens of pictures on several grids."""
    joined = {
        field.name: torch.cat([getattr(each.inputs, field.name).flatten(0, 1) for each in examples])
        for field in fields(BlockInputs)
        if field.name != "modulations"
    }
    modulations = torch.cat([each.inputs.modulations for each in examples])
    lengths = torch.cat([torch.full((len(each.wanted),), each.canvas.grid.tokens) for each in examples])
    picture = torch.arange(len(lengths)).repeat_interleave(lengths).to(modulations.device)
    painted = torch.cat([each.painted.any(2).flatten() for each in examples])
    kept = painted | (torch.rand(len(painted), generator=torch.Generator().manual_seed(0)) < GROUND_SHARE).to(painted)
    wanted = torch.cat([each.wanted.flatten(0, 1) for each in examples])
    inputs = BlockInputs(joined["tokens"], joined["attention"], modulations, joined["clean"])
    return TokenPool(inputs, wanted, painted.float(), picture, kept.nonzero()[:, 0])


def fit_factors(
    blocks: LastBlocks, pool: TokenPool, budget: StageBudget, rate: float, report: Report
) -> tuple[int, float]:
    """AdamW on random tokens at random scales until the budget is spent; the number of steps and the mean loss.

    `rate` is the highest learning rate.
    """
    device, rng = pool.wanted.device, Random(1)
    optimizer = torch.optim.AdamW(blocks.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    scales, shares = zip(*SCALES, strict=True)
    begun, done, mean = time.monotonic(), 0, math.nan
    while (progress := budget.progress(time.monotonic() - begun, done)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor(progress, done)
        [scale] = rng.choices(scales, shares)
        tokens = pool.chosen[torch.randint(len(pool.chosen), (BATCH,), device=device)]
        with mixed_precision(device):
            drawn = blocks(pool.take(tokens), scale)
        errors = drawn - pool.want(tokens, scale)
        loss = errors.square().mean() if progress < ABSOLUTE_FROM else errors.abs().mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(blocks.parameters(), 1.0)
        optimizer.step()
        done += 1
        mean = loss.item() if math.isnan(mean) else 0.98 * mean + 0.02 * loss.item()
        report(progress, f"step {done}, loss {mean:.4f}")
    return done, mean


def rate_factor(progress: float, done: int) -> float:
    """A warm-up, then half a cosine from 1 down to 3%."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return min(1.0, (done + 1) / WARM_UP) * (FINAL_RATE + (1 - FINAL_RATE) * cosine)
