"""Rectified flow: from noise to latents, one Euler step at a time, every image at its own timestep.

Sources: Liu et al., "Flow Straight and Fast" (arXiv:2209.03003); Esser et al., "Scaling Rectified Flow Transformers"
(arXiv:2403.03206); the FLUX.1 [schnell] model card for its schedule (no shift, no guidance, 1-4 steps).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from schnell.engine.slot_routing import SlotUse
from schnell.engine.text import PromptEmbedding
from schnell.spec import Size

LATENT_CHANNELS = 16
PACKING = 2


@dataclass(frozen=True, slots=True)
class Drawing:
    """One picture on its way: float32 latents (tokens, channels), the noise levels it passes, and where it stands.

    `sigmas` has one entry more than there are steps, from 1 (noise) down to 0 (picture). `grid` is in tokens; `slots`
    are the LoRAs that act on it; `estimate` is where the last step saw the finished latents.
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
    """A picture before its first step."""
    noise = initial_noise(seed, grid).to(prompt.states.device)
    return Drawing(latents=noise, sigmas=noise_levels(steps), step=0, grid=grid, prompt=prompt, slots=slots)


def initial_noise(seed: int, grid: Size) -> Tensor:
    """Noise for one picture, packed as (tokens, 64), from a CPU generator: the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (LATENT_CHANNELS, PACKING * grid.height, PACKING * grid.width)
    return pack_latents(torch.randn(shape, generator=generator, dtype=torch.float32))


def noise_levels(steps: int) -> tuple[float, ...]:
    """Sigmas 1, (n-1)/n, ... 1/n, and the final 0, as float32 holds them."""
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


def position_ids(grid: Size, device: torch.device) -> Tensor:
    """(tokens, 3): FLUX's rotary coordinates (0, row, column) of every latent token."""
    rows, columns = torch.meshgrid(torch.arange(grid.height), torch.arange(grid.width), indexing="ij")
    zeros = torch.zeros(grid.height * grid.width)
    return torch.stack([zeros, rows.flatten().float(), columns.flatten().float()], dim=-1).to(device)


@torch.inference_mode()
def denoise_step(transformer: Callable[..., tuple[Tensor, ...]], drawings: Sequence[Drawing]) -> list[Drawing]:
    """Take every picture one step further. They may differ in everything but the token grid."""
    velocities = predict_velocity(transformer, drawings)
    return [_euler_step(drawing, velocity) for drawing, velocity in zip(drawings, velocities, strict=True)]


def predict_velocity(transformer: Callable[..., tuple[Tensor, ...]], drawings: Sequence[Drawing]) -> Tensor:
    """(batch, tokens, channels) in float32: the direction from picture to noise at each drawing's own timestep."""
    grid = drawings[0].grid
    states = torch.stack([drawing.prompt.states for drawing in drawings])
    device, dtype = states.device, states.dtype
    timestep = torch.tensor([drawing.sigmas[drawing.step] for drawing in drawings], device=device)
    velocity: Tensor = transformer(
        hidden_states=torch.stack([drawing.latents for drawing in drawings]).to(dtype),
        encoder_hidden_states=states,
        pooled_projections=torch.stack([drawing.prompt.pooled for drawing in drawings]),
        timestep=timestep.to(dtype),
        img_ids=position_ids(grid, device),
        txt_ids=torch.zeros(states.shape[1], 3, device=device),
        return_dict=False,
    )[0]
    return velocity.float()


def _euler_step(drawing: Drawing, velocity: Tensor) -> Drawing:
    now, after = drawing.sigmas[drawing.step], drawing.sigmas[drawing.step + 1]
    return replace(
        drawing,
        latents=drawing.latents + (after - now) * velocity,
        estimate=drawing.latents - now * velocity,
        step=drawing.step + 1,
    )
