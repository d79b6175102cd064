"""Whether this card draws what it should.

The embedded model, whose pictures mean something, against the CPU; and the true network against diffusers' own.
"""

from functools import partial
from typing import Any

import torch
from PIL import Image

from schnell.benchmarks.gpu.drawing import PROMPTS, draw, make_job, psnr
from schnell.benchmarks.gpu.lab import Figures, Lab
from schnell.benchmarks.gpu.stock import stock_transformer
from schnell.engine.denoise import position_ids
from schnell.engine.engine import Engine
from schnell.engine.flux import Flux, FluxParams
from schnell.engine.loading import fill_network
from schnell.engine.weight_names import diffusers_names, join_tensors
from schnell.models.catalogue import DEFAULT_MODEL, find_model
from schnell.spec import Size


def parity(lab: Lab) -> Figures:
    """Same bytes alone, dB between alone and in a batch and between this device and the CPU; error to diffusers."""
    model = find_model(DEFAULT_MODEL)
    card, processor = Engine(model, lab.device), Engine(model, torch.device("cpu"))
    size = Size(256, 256) if lab.is_dry else Size(1024, 1024)
    exact = processor.precision_for(go_fast=False)
    seeds = range(2 if lab.is_dry else len(PROMPTS))
    references = [draw(processor, [make_job(size, seed)], exact)[0] for seed in seeds]
    for go_fast in (False, True):
        name = "go_fast" if go_fast else "exact"
        yield lab.attempt(name, partial(_compare, card, size, references, go_fast=go_fast))
    del card
    yield lab.attempt("error_to_diffusers", partial(_error_to_diffusers, lab))


def _compare(card: Engine, size: Size, references: list[Image.Image], *, go_fast: bool) -> dict[str, Any]:
    precision = card.precision_for(go_fast=go_fast)
    jobs = [make_job(size, seed) for seed in range(len(references))]
    alone = [draw(card, [job], precision)[0] for job in jobs]
    again = [draw(card, [job], precision)[0] for job in jobs]
    together = draw(card, jobs, precision)
    return {
        "path": precision.name,
        "same_bytes": all(one.tobytes() == other.tobytes() for one, other in zip(alone, again, strict=True)),
        "batch_db": min(map(psnr, alone, together)),
        "cpu_db": min(map(psnr, alone, references)),
    }


@torch.inference_mode()
def _error_to_diffusers(lab: Lab) -> float:
    """The relative error of our network's velocity to that of diffusers', over the same random weights in bfloat16."""
    peer = stock_transformer(lab)
    weights = peer.state_dict()
    with torch.device("meta"):
        ours = Flux(FluxParams.from_config(lab.shape.transformer))
    joined = (
        (name, join_tensors(name, [weights[piece] for piece in diffusers_names(name)])) for name in ours.state_dict()
    )
    fill_network(ours, joined, torch.bfloat16, lab.device)
    grid, config = Size(64, 64) if lab.on_cuda else Size(8, 8), lab.shape.transformer

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, device=lab.device, dtype=torch.bfloat16)

    img, txt = random(grid.width * grid.height, config["in_channels"]), random(256, config["joint_attention_dim"])
    pooled, level = random(config["pooled_projection_dim"]), torch.full((1,), 0.75, device=lab.device)
    ids = position_ids(grid, txt.shape[1])
    velocity = ours(img, txt, ids, level, pooled)
    theirs = peer(
        hidden_states=img,
        encoder_hidden_states=txt,
        pooled_projections=pooled,
        timestep=level.bfloat16(),
        txt_ids=ids[: txt.shape[1]].to(lab.device),
        img_ids=ids[txt.shape[1] :].to(lab.device),
        return_dict=False,
    )[0]
    return float((velocity.float() - theirs.float()).norm() / theirs.float().norm())
