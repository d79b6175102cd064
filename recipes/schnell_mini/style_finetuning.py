"""A finished model learns to read past words that change neither icon nor background, and to mean one icon.

Self-distillation: what the model reads of a subject alone is what it has to read of the same subject among styles and
backgrounds; a background's codes are the median of what it reads for many names. Where a subject is read as a mixture
of icons, of which one is clearly nearest, that one has to be read. CLIP alone changes.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from shutil import copytree, rmtree

import torch
from torch import Tensor
from torch.nn import functional

from schnell_mini.caption_dataset import CaptionSampler, pick_styles
from schnell_mini.captions import COLOURS, write_caption
from schnell_mini.code_training import AVERAGED, SHARPNESS, read_codes
from schnell_mini.data import Data
from schnell_mini.layout import ALL_CODES, APPEARANCE_CODES
from schnell_mini.loop import (
    AveragedLearner,
    MovingAverage,
    Show,
    StageBudget,
    optimizer_step,
    rate_factor,
    run_learner,
)
from schnell_mini.sampling import MiniPipeline, load_pipeline
from schnell_mini.subjects import write_subjects
from schnell_mini.text_classifier import BATCH
from schnell_mini.tokens import token_ids

RATE = 4e-4
SUBJECTS = 300_000
#: Subjects alone keep what is read of them: without them CLIP drifts at sentences (decision 81).
PLAIN_SHARE, STYLED_SHARE, WHITE_SHARE = 0.4, 0.6, 0.3
#: Subjects that name a colour, such as a red apple, are the ones whose background is misread: they come more often.
COLOURED_SHARE = 0.25
#: An error of a tenth in a background's codes moves its colour by several steps of 255.
BACKGROUND_WEIGHT = 24.0
#: The cosine with the nearest name from which a mixture begins to mean that name, and from which it does altogether.
#: Below, nothing is near: such a prompt stays the mixture that it is warned about.
FAR, CLEAR = 0.5, 0.65
COLOUR_WORDS = frozenset(word for name in COLOURS for word in name.split()) - {"sky"}
#: So many subjects are compared with all names at a time.
COMPARED = 4096
#: So many batches of captions are sampled at a time, and each gets captions that are about equally long.
SAMPLED = 16


@dataclass(frozen=True)
class Batch:
    """Token ids `[B, L]`, numbers of subjects and backgrounds."""

    ids: Tensor
    subjects: list[int]
    colours: list[int]


def importance(codes: Tensor, pictures: Tensor) -> Tensor:
    """How much each code `[N, K]` changes premultiplied pictures `[N, 4, S, S]`, as shares: `[K]` (least squares)."""
    pixels = (pictures[:, :3].float() + 255 - pictures[:, 3:].float()).flatten(1)
    strengths: Tensor = torch.linalg.lstsq(codes, pixels - pixels.mean(0)).solution.norm(dim=1)
    return strengths / strengths.sum()


def commit(codes: Tensor, names: Tensor) -> Tensor:
    """Codes of subjects `[B, K]`, each moved to those of the nearest name, of `[N, K]`, as far as that one is clear."""
    cosines = functional.normalize(codes, dim=1) @ functional.normalize(names, dim=1).T
    nearest = cosines.max(1)
    clear = ((nearest.values - FAR) / (CLEAR - FAR)).clamp(0, 1)[:, None]
    return torch.lerp(codes, names[nearest.indices], clear)


class StyleLearner(AveragedLearner):
    """Trains CLIP; the transformer's text embedder, frozen, turns what it says into codes."""

    name = "styles"
    kept = "clip"

    def __init__(self, pipeline: MiniPipeline, data: Data, subjects: int = SUBJECTS) -> None:
        self.pipeline, self.rng, self.done, self.device = pipeline, Random(0), 0, pipeline.device
        self.embedder = pipeline.transformer.time_text_embed.text_embedder.requires_grad_(requires_grad=False)
        sampler = CaptionSampler(data.sources, self.rng)
        self.texts = sorted({sampler.subject().text for _ in range(subjects)})
        self.coloured = [number for number, text in enumerate(self.texts) if not COLOUR_WORDS.isdisjoint(text.split())]
        names = [label.name for label in data.icons.labels]
        self.names = self.read_all(names)[:, :APPEARANCE_CODES]
        parts = torch.split(self.read_all(self.texts)[:, :APPEARANCE_CODES], COMPARED)
        self.wanted = torch.cat([commit(part, self.names) for part in parts])
        grounds = [self.read_all([f"{name} on a {colour} background" for name in names[::4]]) for colour in COLOURS]
        self.grounds = torch.stack([codes[:, APPEARANCE_CODES:].median(0).values for codes in grounds])
        self.weights = importance(self.names, data.icons.pictures[:, :, ::8, ::8].to(self.device))
        self.clip = deepcopy(pipeline.text.clip).requires_grad_().train()
        self.average, self.batches = MovingAverage(self.clip, AVERAGED), self.sample_batches()
        groups = [{"params": list(self.clip.parameters()), "base": RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids `[B, L]`, no longer than the longest text."""
        ids = token_ids(self.pipeline.text.tokenizers[0], texts)
        return ids[:, : int((ids > 0).sum(1).max())].to(self.device)

    @torch.no_grad()
    def read_all(self, texts: list[str]) -> Tensor:
        """What the pipeline reads of texts: codes `[N, 187]`."""
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        parts = [[texts[i] for i in order[start : start + 256]] for start in range(0, len(order), 256)]
        pooled = torch.cat([self.pipeline.text.clip(input_ids=self.tokenize(part)).pooler_output for part in parts])
        return read_codes(self.embedder(pooled))[torch.tensor(order).argsort().to(self.device)]

    def update(self, progress: float) -> Tensor:
        """One optimizer step; the loss."""
        batch = next(self.batches)
        embedded = self.embedder(self.clip(input_ids=batch.ids).pooler_output)
        loss = self.loss(embedded, self.wanted[batch.subjects], self.grounds[batch.colours])
        optimizer_step(self.optimizer, loss, self.clip, rate_factor(progress, self.done, 100, 0.3, 0.02))
        self.average.add(self.clip)
        self.done += 1
        return loss.detach()

    def sample_batches(self) -> Iterator[Batch]:
        """Batches of captions that are about equally long, in random order."""
        size = BATCH[self.device.type]
        while True:
            captions = sorted((self.sample() for _ in range(SAMPLED * size)), key=lambda caption: len(caption[0]))
            parts = [captions[start : start + size] for start in range(0, len(captions), size)]
            for part in self.rng.sample(parts, len(parts)):
                texts, subjects, colours = zip(*part, strict=True)
                yield Batch(self.tokenize(list(texts)), list(subjects), list(colours))

    def sample(self) -> tuple[str, int, int]:
        """A subject alone, or on a background and often in a style; with the numbers of subject and background."""
        subject, styles = self.rng.randrange(len(self.texts)), []
        if self.coloured and self.rng.random() < COLOURED_SHARE:
            subject = self.rng.choice(self.coloured)
        if self.rng.random() < PLAIN_SHARE:
            return self.texts[subject], subject, 0
        colour = 0 if self.rng.random() < WHITE_SHARE else self.rng.randrange(len(COLOURS))
        if self.rng.random() < STYLED_SHARE:
            styles = pick_styles(self.rng)
        return write_caption(self.rng, self.texts[subject], list(COLOURS)[colour], styles), subject, colour

    def loss(self, embedded: Tensor, wanted: Tensor, grounds: Tensor) -> Tensor:
        """Squared errors of the codes, and how differently near all names' codes are (cross entropy)."""
        read = read_codes(embedded)
        appearance = read[:, :APPEARANCE_CODES]
        wrong = (appearance - wanted).square()
        alike = functional.cross_entropy(self.nearness(appearance), self.nearness(wanted).softmax(1))
        background = (read[:, APPEARANCE_CODES:] - grounds).square().mean()
        unused = embedded[:, ALL_CODES:].square().mean()
        errors = (wrong * self.weights).sum(1).mean() + wrong.mean()
        return 16 * errors + 0.25 * alike + BACKGROUND_WEIGHT * background + 0.1 * unused

    def nearness(self, appearance: Tensor) -> Tensor:
        """Logits of names `[B, N]`: minus the squared distance, but for what all names share (`nearness_loss`)."""
        scaled, names = appearance * self.weights.sqrt(), self.names * self.weights.sqrt()
        return SHARPNESS * (2 * scaled @ names.T - names.square().sum(1))

    def finish(self) -> None:
        """Put the averaged weights into the pipeline."""
        self.average.copy_to(self.clip)
        self.pipeline.text.clip.load_state_dict(self.clip.state_dict())


def finetune_styles(folder: Path, data: Data, work: Path, budget: StageBudget, show: Show) -> Path:
    """A copy of a model folder, with a finetuned CLIP and the list of what it knows; a state in `work` is resumed."""
    learner = StyleLearner(load_pipeline(folder), data)
    run_learner(learner, budget, work / "styles.pt", show)
    learner.finish()
    made = work / "schnell-mini"
    rmtree(made, ignore_errors=True)
    copytree(folder, made)
    learner.pipeline.text.clip.half().save_pretrained(made / "text_encoder")
    write_subjects(load_pipeline(made), [label.name for label in data.icons.labels], made)
    return made
