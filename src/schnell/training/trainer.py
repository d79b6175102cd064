"""The training loop: from a folder of pictures to a LoRA file."""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Final

import torch

from schnell.engine.flux import Flux
from schnell.engine.text import PromptEmbedding
from schnell.errors import TrainingError, TrainingOptionError
from schnell.training.examples import embed_captions, move_prompt, prepare_data
from schnell.training.files import (
    LoraOrigin,
    SavedTraining,
    TrainingIdentity,
    load_training,
    save_training,
    state_path,
    write_lora,
)
from schnell.training.lessons import Lessons, Student
from schnell.training.low_rank import BaseModel, LowRankLayers, install_low_rank, read_factors, write_factors
from schnell.training.memory import fit_plan
from schnell.training.pairs import Pairing, pair_pictures
from schnell.training.pictures import CaptionedPicture, find_pictures
from schnell.training.plan import ProgressReport, TrainingPlan, TrainingProgress, rate_factor
from schnell.training.preconditioning import precondition
from schnell.training.samples import Sampler, build_sampler, measure_change, write_samples

#: The learning rate of B as a multiple of that of A (LoRA+, Hayou et al., arXiv:2402.12354).
B_RATE: Final = 4.0
_SECONDS_BETWEEN_SAVES: Final = 60.0
_SAMPLE_PROMPTS: Final = 8
_SAMPLE_TIMES: Final = 5
#: The documented number of pictures: fewer are learned by heart, and the look is not told from what they show.
FEWEST_PICTURES: Final = 10
#: A smaller change of latents (`samples.measure_change`) is not seen; looks that are seen make 0.3 to 1.7.
LEAST_CHANGE: Final = 0.15
_COMPARED_PROMPTS: Final = 4
#: The weight of the steps before in the running mean of the loss.
_SMOOTHING: Final = 0.95


@dataclass(frozen=True, slots=True)
class TrainedLora:
    """The result of a training: its file, steps and seconds spent, the running mean of the loss, and warnings."""

    path: Path
    steps: int
    seconds: float
    loss: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """What is trained, on what, into which file. `resume` goes on from the state saved beside `out`, if there is one.

    `samples` is a folder for sample pictures drawn during the training; None draws none.
    """

    images: Path
    out: Path
    plan: TrainingPlan
    base: BaseModel
    resume: bool = False
    samples: Path | None = None


def train_lora(request: TrainingRequest, report: ProgressReport) -> TrainedLora:
    """Train a LoRA and write it to `request.out`. Interrupted, it leaves a state that `resume` goes on from.

    Raises:
        TrainingOptionError: the folder of pictures, the trigger word, the rank or `out` cannot be used.
        TrainingError: the device has no room, or pictures, captions or the state to resume from cannot be used.
        ModelFolderError: the model cannot be loaded.
    """
    base = request.base
    # before anything is loaded: what has no room is told at once
    request = replace(request, plan=fit_plan(base, request.plan))
    plan = request.plan
    if request.out.suffix != ".safetensors":
        raise TrainingOptionError(f"--out must end in .safetensors, got {request.out}")
    pictures = find_pictures(request.images, plan.trigger)
    identity = TrainingIdentity(base.sha256, plan.trigger, plan.rank)
    saved = load_training(state_path(request.out), identity) if request.resume else None
    captions = embed_captions(pictures, base, report)
    sampler = _sampler(request, pictures)
    student, lessons = _prepare(request, pictures, captions, report)
    run = _start(request, student, lessons, identity)
    if saved is not None:
        _continue(run, saved)
    with _saving_state(run):
        _train(run, sampler, request.samples, report)
    origin = LoraOrigin(plan.trigger, base.folder.name, identity.base_model_sha256, plan.rank, run.step)
    write_lora(request.out, read_factors(student.layers), origin)
    warnings = (*_warnings(request, captions.values(), saved), *_warn_of_pictures(pictures), *_warn_of_no_change(run))
    return TrainedLora(request.out, run.step, run.seconds, run.loss, warnings)


@dataclass(slots=True)
class _Run:
    """A training under way. `seconds` counts optimizer steps alone, without saving and sample pictures."""

    plan: TrainingPlan
    lessons: Lessons
    student: Student
    optimizer: torch.optim.Optimizer
    identity: TrainingIdentity
    state: Path
    step: int = 0
    seconds: float = 0.0
    loss: float = float("nan")

    @property
    def spent(self) -> float:
        return self.plan.budget.spent(self.step, self.seconds)

    def save(self) -> None:
        saved = SavedTraining(
            identity=self.identity,
            step=self.step,
            seconds=self.seconds,
            factors=read_factors(self.student.layers),
            optimizer=self.optimizer.state_dict(),
            generator=self.student.generator.get_state(),
        )
        save_training(self.state, saved)


def _prepare(
    request: TrainingRequest,
    pictures: tuple[CaptionedPicture, ...],
    captions: dict[str, PromptEmbedding],
    report: ProgressReport,
) -> tuple[Student, Lessons]:
    base, plan = request.base, request.plan
    if base.folder.noise_places:
        student = _make_student(request)
        pairs = pair_pictures(Pairing(base, student.transformer, pictures, captions, plan), report)
        precondition(student, pairs, plan.batch_size)
        return student, pairs
    # before the transformer is loaded, so that the networks share the memory
    lessons = prepare_data(pictures, captions, base, plan, report)
    return _make_student(request), lessons


def _make_student(request: TrainingRequest) -> Student:
    base, plan = request.base, request.plan
    transformer: Flux = base.load("transformer")
    layers = install_low_rank(transformer, plan.rank, plan.seed, base.folder.lora_layers)
    transformer.checkpointing = plan.checkpointing
    return Student(transformer, layers, torch.Generator("cpu").manual_seed(plan.seed), base.device)


def _start(request: TrainingRequest, student: Student, lessons: Lessons, identity: TrainingIdentity) -> _Run:
    plan = request.plan
    rate = plan.rate_for(student.transformer.params.hidden_size)
    return _Run(
        plan=plan,
        lessons=lessons,
        student=student,
        optimizer=_build_optimizer(student.layers, rate),
        identity=identity,
        state=state_path(request.out),
    )


def _build_optimizer(layers: LowRankLayers, rate: float) -> torch.optim.Optimizer:
    groups = [
        # `highest` is ours: `lr` is set from it before every step
        {"params": [layer.a for layer in layers.values()], "lr": rate, "highest": rate},
        {"params": [layer.b for layer in layers.values()], "lr": rate * B_RATE, "highest": rate * B_RATE},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0)


def _continue(run: _Run, saved: SavedTraining) -> None:
    write_factors(run.student.layers, saved.factors)
    run.optimizer.load_state_dict(dict(saved.optimizer))
    run.student.generator.set_state(saved.generator)
    run.step, run.seconds = saved.step, saved.seconds


@contextmanager
def _saving_state(run: _Run) -> Iterator[None]:
    """Save the state when the block ends, also when Ctrl-C or a failure ends it."""
    try:
        yield
    except TrainingError:
        raise  # the loss has diverged: a state saved before is worth more than these factors
    except BaseException:
        run.save()
        raise
    run.save()


def _train(run: _Run, sampler: Sampler | None, samples: Path | None, report: ProgressReport) -> None:
    last_save, next_sample = monotonic(), 0.0
    while run.spent < 1.0:
        if sampler is not None and samples is not None and run.spent >= next_sample:
            write_samples(sampler, run.student.transformer, samples, run.step)
            next_sample = run.spent + 1 / _SAMPLE_TIMES
        _take_step(run)
        report(TrainingProgress("training", run.spent, f"step {run.step}, loss {run.loss:.4f}"))
        if monotonic() - last_save > _SECONDS_BETWEEN_SAVES:
            run.save()
            last_save = monotonic()
    if sampler is not None and samples is not None:
        write_samples(sampler, run.student.transformer, samples, run.step)


def _take_step(run: _Run) -> None:
    start = monotonic()
    for group in run.optimizer.param_groups:
        group["lr"] = group["highest"] * rate_factor(run.step, run.spent)
    run.lessons.renew(run.student, run.spent)
    loss = run.lessons.loss(run.student, run.plan.batch_size)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(f"the loss is not a number at step {run.step}: train with a lower --learning-rate")
    torch.nn.utils.clip_grad_norm_([p for group in run.optimizer.param_groups for p in group["params"]], 1.0)
    run.optimizer.step()
    run.step += 1
    run.seconds += monotonic() - start
    run.loss = value if math.isnan(run.loss) else _SMOOTHING * run.loss + (1 - _SMOOTHING) * value


def _sampler(request: TrainingRequest, pictures: tuple[CaptionedPicture, ...]) -> Sampler | None:
    if request.samples is None:
        return None
    spread = pictures[:: max(1, len(pictures) // _SAMPLE_PROMPTS)][:_SAMPLE_PROMPTS]
    return build_sampler([picture.captions[0] for picture in spread], request.base)


def _warnings(
    request: TrainingRequest, captions: Collection[PromptEmbedding], saved: SavedTraining | None
) -> tuple[str, ...]:
    found = []
    if cut := sum(caption.was_truncated for caption in captions):
        limit = request.base.folder.sequence_length
        found.append(f"{cut} captions are longer than {limit} tokens: their ends were not read")
    if request.resume and saved is None:
        found.append(f"there was no {state_path(request.out)} to resume from: this training began anew")
    return tuple(found)


def _warn_of_pictures(pictures: tuple[CaptionedPicture, ...]) -> tuple[str, ...]:
    if len(pictures) >= FEWEST_PICTURES:
        return ()
    return (f"{len(pictures)} pictures are few: {FEWEST_PICTURES} or more teach a look that other prompts take on",)


def _warn_of_no_change(run: _Run) -> tuple[str, ...]:
    """Compare what is drawn with the LoRA and without it, for prompts that were trained on, at the smallest grid."""
    student = run.student
    prompts = [move_prompt(prompt, student.device) for prompt in run.lessons.prompts[:_COMPARED_PROMPTS]]
    change = measure_change(student.transformer, student.layers, prompts, run.lessons.smallest_grid)
    if change >= LEAST_CHANGE:
        return ()
    return ("pictures hardly differ from those without the LoRA: train longer, or with a higher --learning-rate",)
