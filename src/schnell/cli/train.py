"""`schnell train`: LoRAs from a folder of pictures."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated

import typer

from schnell.cli.output import AsJson, print_json, progress_bars, say

if TYPE_CHECKING:
    from schnell.training.low_rank import BaseModel
    from schnell.training.plan import ProgressReport

train_app = typer.Typer(help="Train LoRAs.", no_args_is_help=True)
Minutes = Annotated[float, typer.Option(min=0.001, help="Training time; preparing the pictures comes on top.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Train exactly so many steps, whatever --minutes says.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from where the last training stopped.")]
Model = Annotated[str, typer.Option(help="A model's name or folder.")]
WatchStdin = Annotated[
    bool, typer.Option("--watch-stdin", help="Stop when stdin ends: with the program that started this one.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, xpu or mps.")]


class Progress(StrEnum):
    """Bars for people, or a JSON object a line for programs."""

    BARS = "bars"
    JSON = "json"


@train_app.callback()
def train() -> None:
    """Train models."""
    # without a callback, typer makes an app of one command that command: `schnell train IMAGES`, with no `lora`


@train_app.command("lora")
def train_lora_command(
    images: Annotated[Path, typer.Argument(help="A folder of pictures, each with NAME.txt of captions beside it.")],
    trigger: Annotated[str, typer.Option(help="The word that stands for what is learned.")],
    out: Annotated[Path, typer.Option(help="The LoRA to write, a .safetensors file.")],
    rank: Annotated[
        int | None, typer.Option(min=1, help="How much the LoRA can hold; by default 16, or what the model names.")
    ] = None,
    minutes: Minutes = 10.0,
    steps: Steps = None,
    resume: Resume = False,
    model: Model = "schnell-mini",
    device: Device = "auto",
    samples: Annotated[Path | None, typer.Option(help="A folder for sample pictures drawn on the way.")] = None,
    megapixels: Annotated[
        list[str] | None, typer.Option(help="0.25 or 1: the size of pictures to train at; may be given twice.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step, of the smallest size.")] = 4,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="The highest learning rate; 0.5 / model width if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the factors' start, and of the order of pictures.")] = 0,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory, a third more time: for 12 B parameters.")
    ] = False,
    progress: Annotated[Progress, typer.Option(help="How progress is told on stderr.")] = Progress.BARS,
    watch_stdin: WatchStdin = False,
    as_json: AsJson = False,
) -> None:
    """Train a LoRA on a folder of pictures."""
    if watch_stdin:
        _end_with_stdin()
    from schnell.training.plan import Budget, TrainingPlan, divide_steps
    from schnell.training.trainer import TrainingRequest, train_lora

    base = _base_model(model, device)
    plan = TrainingPlan(
        trigger=trigger,
        rank=base.folder.lora_rank if rank is None else rank,
        budget=Budget(minutes, steps),
        megapixels=divide_steps(tuple(megapixels or ("0.25", "1"))),
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        checkpointing=checkpointing,
    )
    request = TrainingRequest(images, out, plan, base, resume=resume, samples=samples)
    with _progress(progress) as report:
        trained = train_lora(request, report)
    for warning in trained.warnings:
        say(f"warning: {warning}")
    if as_json:
        print_json({"file": str(trained.path), "steps": trained.steps, "seconds": round(trained.seconds, 1)})
    else:
        say(f"{trained.path}  {trained.steps} steps, loss {trained.loss:.4f}")


def _end_with_stdin() -> None:
    """End this process, whatever it does, once nobody holds the other end of its stdin.

    Of a program that was killed nothing else tells on every system. The state of the last minute stays, as on a crash.
    """

    def watch() -> None:
        with suppress(OSError):  # closed from the start
            while os.read(0, 4096):
                pass
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _base_model(model: str, device: str) -> "BaseModel":
    from schnell.engine.devices import choose_device
    from schnell.models.catalogue import find_model
    from schnell.training.low_rank import place_model

    return place_model(find_model(model), choose_device(device))


@contextmanager
def _progress(how: Progress) -> "Iterator[ProgressReport]":
    if how is Progress.JSON:
        yield lambda told: say(json.dumps({"stage": told.stage, "done": round(told.done, 4), "message": told.message}))
        return
    with progress_bars() as show:
        yield lambda progress: show(progress.stage, progress.done, progress.message)
