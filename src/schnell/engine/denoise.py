"""Rectified flow: from noise to latents, one Euler step at a time, every picture of a batch at its own timestep.

FLUX's packing of latents into tokens, the tokens' positions and the call for the velocity are here alone, for inference
and training alike. A noise level (sigma) of 1 is noise and of 0 is the picture;
the path between them is the straight line x = (1 - sigma) * picture + sigma * noise, and the velocity that the network
predicts is its direction, noise - picture.

Sources: Liu et al., "Flow Straight and Fast" (arXiv:2209.03003); Esser et al., "Scaling Rectified Flow Transformers"
(arXiv:2403.03206); the FLUX.1 [schnell] model card for its schedule (no shift, no guidance, 1-4 steps).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from schnell.engine.flux import VelocityNetwork
from schnell.engine.slot_routing import SlotUse
from schnell.engine.text import PromptEmbedding
from schnell.models.folder import PACKING
from schnell.spec import Size

#: Channels of the autoencoder's latents.
LATENT_CHANNELS: Final = 16


@dataclass(frozen=True, slots=True)
class Drawing:
    """One picture on its way through the denoising steps, as it is between two of them.

    `latents` are float32 (tokens, 64) at noise level `sigmas[step]`. `sigmas` has one entry more than there are steps,
    from 1 down to 0. `grid` is the width and height in tokens; `slots` are the LoRAs that act on it; `estimate`, of the
    latents' shape, is the finished picture as the last step predicted it (None before the first).
    """

    latents: Tensor
    sigmas: tuple[float, ...]
    step: int
    grid: Size
    prompt: PromptEmbedding
    slots: tuple[SlotUse, ...] = ()
    estimate: Tensor | None = None

    @property
    def steps(self) -> int:
        """How many denoising steps this picture takes in all."""
        return len(self.sigmas) - 1

    @property
    def is_done(self) -> bool:
        """Whether only decoding is left."""
        return self.step == self.steps


def begin_drawing(
    prompt: PromptEmbedding, seed: int, steps: int, grid: Size, slots: tuple[SlotUse, ...] = ()
) -> Drawing:
    """A picture before its first step, on the device of `prompt`."""
    noise = initial_noise(seed, grid).to(prompt.states.device)
    return Drawing(latents=noise, sigmas=noise_levels(steps), step=0, grid=grid, prompt=prompt, slots=slots)


def initial_noise(seed: int, grid: Size) -> Tensor:
    """Float32 noise for one picture, packed as (tokens, 64), on the CPU. It depends on seed and grid alone."""
    # torch's generators differ from device to device: drawn on the CPU, a seed means the same picture everywhere
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (LATENT_CHANNELS, PACKING * grid.height, PACKING * grid.width)
    return pack_latents(torch.randn(shape, generator=generator, dtype=torch.float32))


def noise_levels(steps: int) -> tuple[float, ...]:
    """The noise levels of `steps` steps: 1, (n-1)/n, … 1/n, and the final 0; without a shift, as [schnell] wants."""
    # in float64, rounded to float32, as diffusers' FluxPipeline makes them
    levels = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).float().tolist()
    return (*levels, 0.0)


def pack_latents(latents: Tensor) -> Tensor:
    """(..., channels, 2h, 2w) to (..., h*w tokens, 4*channels): each token is a 2x2 square, channel-major."""
    *batch, channels, height, width = latents.shape
    squares = latents.view(*batch, channels, height // PACKING, PACKING, width // PACKING, PACKING)
    # (..., channels, h, 2, w, 2) to (..., h, w, channels, 2, 2)
    return squares.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)


def unpack_latents(tokens: Tensor, grid: Size) -> Tensor:
    """(..., h*w tokens, 4*channels) to (..., channels, 2h, 2w): the inverse of `pack_latents`; `grid` is (w, h)."""
    *batch, _, _ = tokens.shape
    squares = tokens.view(*batch, grid.height, grid.width, -1, PACKING, PACKING)
    # (..., h, w, channels, 2, 2) to (..., channels, h, 2, w, 2)
    return squares.movedim((-5, -4), (-4, -2)).flatten(-2).flatten(-3, -2)


@lru_cache(maxsize=16)
def position_ids(grid: Size, text_tokens: int) -> Tensor:
    """(text and latent tokens, 3), float32, on the CPU: FLUX's rotary coordinates, text first.

    (0, row, column) for every latent token, row by row; zeros for all text tokens. The same tensor every time.
    """
    # an ordinary tensor even where inference mode is on: training may ask for the same one later
    with torch.inference_mode(mode=False):
        rows, columns = torch.meshgrid(torch.arange(grid.height), torch.arange(grid.width), indexing="ij")
        zeros = torch.zeros(grid.height * grid.width)
        ids = torch.stack([zeros, rows.flatten().float(), columns.flatten().float()], dim=-1)
        return torch.cat([torch.zeros(text_tokens, 3), ids])


@torch.inference_mode()
def denoise_step(transformer: VelocityNetwork, drawings: Sequence[Drawing]) -> list[Drawing]:
    """Take every picture one step further. They may differ in everything but the token grid."""
    velocities = predict_velocity(transformer, drawings)
    return [_euler_step(drawing, velocity) for drawing, velocity in zip(drawings, velocities, strict=True)]


def predict_velocity(transformer: VelocityNetwork, drawings: Sequence[Drawing]) -> Tensor:
    """The velocity, from picture to noise, at each drawing's own timestep: (batch, tokens, 64) in float32.

    The network runs in the dtype of the prompts' embeddings.
    """
    states = torch.stack([drawing.prompt.states for drawing in drawings])
    velocity = transformer(
        torch.stack([drawing.latents for drawing in drawings]).to(states.dtype),
        states,
        position_ids(drawings[0].grid, states.shape[1]),
        _levels_on(tuple(drawing.sigmas[drawing.step] for drawing in drawings), states.device),
        torch.stack([drawing.prompt.pooled for drawing in drawings]),
    )
    # latents stay float32 from step to step, so that a network in bfloat16 rounds its own work alone
    return velocity.float()


@lru_cache(maxsize=128)
def _levels_on(levels: tuple[float, ...], device: torch.device) -> Tensor:
    # kept, since the same few levels come again with every picture, and a copy to a GPU waits for the GPU
    with torch.inference_mode(mode=False):
        return torch.tensor(levels, device=device)


def _euler_step(drawing: Drawing, velocity: Tensor) -> Drawing:
    now, after = drawing.sigmas[drawing.step], drawing.sigmas[drawing.step + 1]
    return replace(
        drawing,
        latents=drawing.latents + (after - now) * velocity,
        estimate=drawing.latents - now * velocity,
        step=drawing.step + 1,
    )
