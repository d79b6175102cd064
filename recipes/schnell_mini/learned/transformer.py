"""The transformer, every block of it learned by flow matching (Lipman et al. 2023, arXiv:2210.02747).

An ordinary initialisation, AdamW, a moving average of the weights. The text side stays as it is: its embedder turns a
caption into codes of the icon that it means, and the look is read from the caption's tokens, which the double blocks
attend to.
"""

from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional

from schnell.engine.denoise import pack_latents, predict_velocity
from schnell.engine.text import PromptEmbedding
from schnell.spec import Size
from schnell_mini import layout
from schnell_mini.loop import AveragedLearner, MovingAverage, mixed_precision, optimizer_step, rate_factor
from schnell_mini.networks import as_velocity
from schnell_mini.sampling import start_drawings
from schnell_mini.text_models import as_embeddings

RATE = 1.5e-3
AVERAGED = 0.999
CODE_OFFSET, CODE_SPREAD = 1.0, 1.0
#: Noise levels of the steps, each with its share; the rest is logit-normal, shifted towards noise.
LEVELS = ((1.0, 0.4), (0.75, 0.15), (0.5, 0.1), (0.25, 0.05))
LEVEL_CENTRE = 0.4
#: Pictures of 64 tokens in a batch: a GPU is idle with few, and on a CPU the number of updates counts.
BATCH = {"cuda": 256, "cpu": 48}


@dataclass(frozen=True)
class FlowShape:
    """Depths and width of the transformer."""

    width: int = 256
    head: int = 64
    double_blocks: int = 2
    single_blocks: int = 10
    text_width: int = 64


@dataclass(frozen=True)
class Captioned:
    """Pictures of one canvas, with captions: what the flow learns from, on the CPU.

    `latents` `[N, 16, h, w]`, scaled; `states` `[C, L, D]` and `pooled` `[C, P]` of captions, in half precision;
    `captions` `[N, K]` are the numbers of each picture's captions.
    """

    latents: Tensor
    states: Tensor
    pooled: Tensor
    captions: Tensor

    @property
    def grid(self) -> Size:
        """The canvas in tokens."""
        return Size(self.latents.shape[-1] // 2, self.latents.shape[-2] // 2)


def build_flow(shape: FlowShape, text_embedder: Any) -> FluxTransformer2DModel:
    """FLUX's transformer with fresh weights, but for the embedder of pooled text, which is taken over and frozen."""
    half = (shape.head - shape.head // 8) // 2
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=layout.TOKEN_CHANNELS,
        num_layers=shape.double_blocks,
        num_single_layers=shape.single_blocks,
        attention_head_dim=shape.head,
        num_attention_heads=shape.width // shape.head,
        joint_attention_dim=shape.text_width,
        pooled_projection_dim=text_embedder.linear_1.in_features,
        guidance_embeds=False,
        axes_dims_rope=(shape.head // 8, half, half),
    )
    take_codes(transformer, text_embedder)
    start_at_identity(transformer)
    return transformer


@torch.no_grad()
def take_codes(transformer: FluxTransformer2DModel, text_embedder: Any) -> None:
    """Copy the embedder of pooled text so that its first channels hold the codes, centred where SiLU bends little.

    The time keeps to the channels behind them at first.
    """
    embedding, codes = transformer.time_text_embed, layout.ALL_CODES
    embedding.text_embedder.load_state_dict(text_embedder.state_dict())
    last = embedding.text_embedder.linear_2
    last.weight[:codes] *= CODE_SPREAD / layout.CODE_SPREAD
    last.bias[:codes] = (last.bias[:codes] - layout.CODE_OFFSET) * CODE_SPREAD / layout.CODE_SPREAD + CODE_OFFSET
    last.weight[codes:], last.bias[codes:] = 0.0, 0.0
    embedding.text_embedder.requires_grad_(requires_grad=False)
    embedding.timestep_embedder.linear_2.weight[:codes] = 0.0
    embedding.timestep_embedder.linear_2.bias[:codes] = 0.0


@torch.no_grad()
def start_at_identity(transformer: FluxTransformer2DModel) -> None:
    """Gates and the output start at zero (adaLN-Zero, Peebles and Xie 2023, arXiv:2212.09748), the rest as usual."""
    width = transformer.x_embedder.out_features
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            for gate in (2, 5):  # shift, scale and gate of attention, then of the feed-forward layer
                norm.linear.weight[gate * width : (gate + 1) * width] = 0.0
                norm.linear.bias[gate * width : (gate + 1) * width] = 0.0
    for block in transformer.single_transformer_blocks:
        block.norm.linear.weight[2 * width :] = 0.0
        block.norm.linear.bias[2 * width :] = 0.0
    transformer.proj_out.weight.zero_()
    transformer.proj_out.bias.zero_()


def draw_levels(rng: Random, count: int) -> list[float]:
    """Noise levels: most often those that four steps visit, above all pure noise, where the text says the most."""
    levels = []
    for _ in range(count):
        chance = rng.random()
        for level, share in LEVELS:
            chance -= share
            if chance < 0:
                levels.append(level)
                break
        else:
            levels.append(float(torch.sigmoid(torch.tensor(rng.gauss(LEVEL_CENTRE, 1.0)))))
    return levels


def sample_captioned(
    canvases: list[Captioned], batch: int, rng: Random, generator: torch.Generator, device: torch.device
) -> tuple[Captioned, Tensor, list[PromptEmbedding]]:
    """A canvas, clean tokens `[B, T, 64]` of it and their prompts; `batch` counts pictures of 64 tokens."""
    canvas = rng.choices(canvases, [len(each.latents) for each in canvases])[0]
    tokens = canvas.grid.width * canvas.grid.height + canvas.states.shape[1]
    count = max(4, batch * (64 + canvas.states.shape[1]) // tokens)
    chosen = torch.randint(len(canvas.latents), (count,), generator=generator)
    column = torch.randint(canvas.captions.shape[1], (count,), generator=generator)
    captions = canvas.captions[chosen, column]
    prompts = as_embeddings(canvas.states[captions].float().to(device), canvas.pooled[captions].float().to(device))
    return canvas, pack_latents(canvas.latents[chosen].float()).to(device), prompts


class TransformerLearner(AveragedLearner):
    """What learning a transformer keeps between two runs, whatever it learns from."""

    kept = "transformer"
    transformer: FluxTransformer2DModel
    generator: torch.Generator

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        super().restore(state)
        self.generator.manual_seed(self.done)


class FlowLearner(TransformerLearner):
    """Trains the transformer on captioned pictures of one or more canvases."""

    name = "transformer"

    def __init__(self, transformer: FluxTransformer2DModel, canvases: list[Captioned], device: torch.device) -> None:
        self.transformer, self.canvases, self.device = transformer.to(device).train(), canvases, device
        self.batch = BATCH[device.type]
        self.rng, self.done = Random(0), 0
        self.generator = torch.Generator("cpu").manual_seed(0)
        self.average = MovingAverage(transformer, AVERAGED)
        trained = [p for p in transformer.parameters() if p.requires_grad]
        groups = [{"params": trained, "base": RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), weight_decay=0.02)

    def update(self, progress: float) -> Tensor:
        """One optimizer step; the mean squared error of the velocity."""
        canvas, clean, prompts = sample_captioned(self.canvases, self.batch, self.rng, self.generator, self.device)
        noise = torch.randn(clean.shape, generator=self.generator).to(self.device)
        levels = draw_levels(self.rng, len(clean))
        level = torch.tensor(levels).to(self.device)[:, None, None]
        drawings = start_drawings(prompts, torch.lerp(clean, noise, level), [(one, 0.0) for one in levels], canvas.grid)
        with mixed_precision(self.device):
            velocity = predict_velocity(as_velocity(self.transformer), drawings)
        loss = functional.mse_loss(velocity, noise - clean)
        optimizer_step(self.optimizer, loss, self.transformer, rate_factor(progress, self.done, 150, 0.6, 0.03))
        self.average.add(self.transformer)
        self.done += 1
        return loss.detach()
