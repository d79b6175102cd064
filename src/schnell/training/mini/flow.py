"""The flow transformer learns to draw what the (finished) text encoders say.

Rectified flow (Liu et al. 2022, arXiv:2209.03003; Esser et al. 2024, arXiv:2403.03206) with what little
compute wants: most samples sit at t = 1 and on the times that few-step sampling visits, and only a random part
of a picture's tokens is shown (Zheng et al. 2023, arXiv:2306.09305). An icon lies
in the middle of every canvas, so that one step need not average over placements.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

from schnell.training.mini.captions import COLOURS, Entry, caption, decorate, on_background
from schnell.training.mini.latents import Encoded, pack, place
from schnell.training.mini.loop import Average, precision, rate, step
from schnell.training.mini.tokens import LENGTH, token_ids

STEP_TIMES = (0.75, 0.5, 0.25)
AVERAGE = 0.996
WIDE = ((24, 42), (42, 24), (26, 38), (38, 26), (28, 34), (34, 28))
TINY = ((12, 22), (22, 12), (14, 20), (20, 14), (14, 18), (18, 14))


@dataclass(frozen=True)
class Canvas:
    """A view of the icons on a canvas of `height` x `width` latents, and how often it is drawn."""

    view: str
    height: int
    width: int
    weight: float


SQUARE = (Canvas("white", 32, 32, 3.0), Canvas("colour", 32, 32, 2.0))
SMALL = (Canvas("small", 16, 16, 1.0),)
RATIOS = tuple(Canvas("wide", h, w, 0.25) for h, w in WIDE) + tuple(Canvas("tiny", h, w, 0.08) for h, w in TINY)
CANVASES = SQUARE + SMALL + RATIOS


@dataclass(frozen=True)
class Course:
    """One stretch of the flow's training."""

    name: str
    canvases: tuple[Canvas, ...]
    shown: int
    words: int
    batch: int = 24
    rate: float = 1.2e-3


PARTS = Course("flow, parts of pictures", CANVASES, shown=64, words=LENGTH, batch=16, rate=5e-4)
WHOLE = Course("flow, whole pictures", CANVASES, shown=256, words=LENGTH, batch=8, rate=4e-4)


@dataclass(frozen=True)
class Conditions:
    """What the transformer is told: T5's tokens `[B, 32, D]` and CLIP's pooled vector `[B, D]`."""

    tokens: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class TextModels:
    """The finished text side; tokenizers in FLUX's order (CLIP, T5)."""

    clip: CLIPTextModel
    t5: T5EncoderModel
    tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Conditions:
        """Read prompts with both encoders."""
        clip_ids = token_ids(self.tokenizers[0], texts).to(self.clip.device)
        t5_ids = token_ids(self.tokenizers[1], texts).to(self.t5.device)
        return Conditions(self.t5(input_ids=t5_ids)[0], self.clip(input_ids=clip_ids).pooler_output)


@dataclass(frozen=True)
class Sample:
    """A batch for the flow: clean tokens, noise, times, positions `[T, 3]`, and what was asked."""

    clean: Tensor
    noise: Tensor
    times: Tensor
    positions: Tensor
    texts: list[str]

    def to(self, device: torch.device) -> "Sample":
        """The same on another device."""
        tensors = (self.clean, self.noise, self.times, self.positions)
        clean, noise, times, positions = (value.to(device) for value in tensors)
        return Sample(clean, noise, times, positions, self.texts)


def grid_positions(height: int, width: int) -> Tensor:
    """FLUX's image ids `[height/2 * width/2, 3]` for a canvas in latents."""
    rows, columns = height // 2, width // 2
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)[None]
    return ids.reshape(-1, 3)


def draw_times(rng: torch.Generator, count: int) -> Tensor:
    """Two thirds at t = 1, most others on the times of four steps, a few anywhere."""
    kind = torch.rand(count, generator=rng)
    anywhere = torch.rand(count, generator=rng)
    steps = torch.tensor(STEP_TIMES)[
        torch.multinomial(torch.tensor([0.45, 0.3, 0.25]), count, replacement=True, generator=rng)
    ]
    return torch.where(kind < 0.65, torch.ones(count), torch.where(kind < 0.92, steps, anywhere))


def write_captions(
    rng: Random, entries: Sequence[Entry], nearby: Mapping[int, Sequence[str]], icons: list[int], colours: list[int]
) -> list[str]:
    """A caption for each icon on its background; a tenth use a dictionary word that means it."""
    names, texts = list(COLOURS), []
    for icon, colour in zip(icons, colours, strict=True):
        words = nearby.get(icon, ())
        if words and rng.random() < 0.1:
            texts.append(on_background(rng, decorate(rng, rng.choice(list(words))), names[colour]))
        else:
            texts.append(caption(rng, entries[icon], names[colour]))
    return texts


@dataclass(frozen=True)
class Dealer:
    """Deals training batches out of the encoded views."""

    views: Mapping[str, Encoded]
    entries: Sequence[Entry]
    nearby: Mapping[int, Sequence[str]]
    rng: Random
    noise: torch.Generator

    def deal(self, canvas: Canvas, size: int, shown: int) -> Sample:
        """`size` pictures on one canvas, of which `shown` random tokens are kept."""
        view = self.views[canvas.view]
        icons = [self.rng.randrange(len(self.entries)) for _ in range(size)]
        latents = place(view.latents[icons].float(), canvas.height, canvas.width)
        clean, positions = pack(latents), grid_positions(canvas.height, canvas.width)
        texts = self.write(icons, view.colours[icons].tolist())
        noise = torch.randn(clean.shape, generator=self.noise)
        kept = torch.randperm(len(positions), generator=self.noise)[:shown]
        times = draw_times(self.noise, size)
        return Sample(clean[:, kept], noise[:, kept], times, positions[kept], texts)

    def write(self, icons: list[int], colours: list[int]) -> list[str]:
        """A caption for each icon on its background."""
        return write_captions(self.rng, self.entries, self.nearby, icons, colours)

    def reseed(self, seed: int) -> None:
        """Deal other samples than before, after a resumed run."""
        self.rng.seed(seed)
        self.noise.manual_seed(seed)

    def choose(self, canvases: Sequence[Canvas]) -> Canvas:
        """A random canvas, by weight."""
        return self.rng.choices(list(canvases), [c.weight for c in canvases])[0]


def velocity(
    transformer: FluxTransformer2DModel, tokens: Tensor, told: Conditions, times: Tensor, positions: Tensor
) -> Tensor:
    """The transformer's answer for noisy tokens at their own times."""
    out = transformer(
        hidden_states=tokens,
        encoder_hidden_states=told.tokens,
        pooled_projections=told.pooled,
        timestep=times,
        img_ids=positions,
        txt_ids=torch.zeros(told.tokens.shape[1], 3, device=tokens.device),
        return_dict=False,
    )[0]
    return out if isinstance(out, Tensor) else torch.as_tensor(out)


def flow_loss(transformer: FluxTransformer2DModel, sample: Sample, told: Conditions) -> Tensor:
    """Mean squared error of the velocity, per sample `[B]`."""
    times = sample.times[:, None, None]
    noisy = (1 - times) * sample.clean + times * sample.noise
    answer = velocity(transformer, noisy, told, sample.times, sample.positions)
    return functional.mse_loss(answer.float(), sample.noise - sample.clean, reduction="none").mean((1, 2))


class FlowLearner:
    """Trains the transformer; `shown` image tokens and `words` text tokens of each sample take part."""

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        text: TextModels,
        dealer: Dealer,
        course: Course,
        device: torch.device,
    ) -> None:
        self.name, self.course, self.device = course.name, course, device
        self.transformer, self.text, self.dealer = transformer.to(device).train(), text, dealer
        self.average, self.done = Average(transformer, AVERAGE), 0
        groups = [{"params": list(transformer.parameters()), "base": course.rate}]
        self.optimizer = torch.optim.AdamW(groups, lr=course.rate, betas=(0.9, 0.98), weight_decay=0.01)

    def update(self, progress: float) -> float:
        """One optimizer step; the loss."""
        course = self.course
        sample = self.dealer.deal(self.dealer.choose(course.canvases), course.batch, course.shown).to(self.device)
        with precision(self.device):
            told = self.text.encode(sample.texts)
            told = Conditions(told.tokens[:, : course.words], told.pooled)
            loss = flow_loss(self.transformer, sample, told).mean()
        step(self.optimizer, loss, self.transformer, rate(progress, self.done))
        self.average.add(self.transformer)
        self.done += 1
        return float(loss.detach())

    def finish(self) -> FluxTransformer2DModel:
        """The transformer with its averaged weights."""
        self.average.copy_to(self.transformer)
        return self.transformer.eval()

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and count of updates."""
        return {
            "transformer": self.transformer.state_dict(),
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        self.transformer.load_state_dict(state["transformer"])
        self.average.values = {name: value.to(self.device) for name, value in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = self.average.count = state["done"]
        self.dealer.reseed(self.done)
