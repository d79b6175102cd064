"""The training loop that all stages share: run for a time, write the state every two minutes, resume from it."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from schnell.engine.device import has_fast_bfloat16

SAVE_EVERY = 120.0
REPORT_EVERY = 20

Show = Callable[[str, float, str], None]


class Learner(Protocol):
    """A stage of training: one update at a time, with a state that can be written and read."""

    name: str

    def update(self, progress: float) -> Tensor:
        """One optimizer step at `progress` in 0..1 of the stage; the loss, as a tensor that need not be ready."""

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""


@dataclass(frozen=True)
class StageBudget:
    """How long a stage of training runs, in seconds; `updates` ends it earlier."""

    seconds: float
    updates: int | None = None

    def progress(self, elapsed: float, done: int) -> float:
        """How far the stage is, in 0..1."""
        shares = [elapsed / max(self.seconds, 1e-9)]
        if self.updates is not None:
            shares.append(done / self.updates)
        return min(1.0, max(shares))


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write a state beside `path` first, then rename it: a run that breaks off leaves the last whole one."""
    fresh = path.with_suffix(".part")
    torch.save(state, fresh)
    os.replace(fresh, path)  # noqa: PTH105


def run_learner(learner: Learner, budget: StageBudget, path: Path, show: Show) -> None:
    """Update until the budget is spent. A state at `path` is resumed; a finished stage returns at once."""
    elapsed, done = 0.0, 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        learner.restore(state["learner"])
        elapsed, done = state["elapsed"], state["done"]
        if state["finished"]:
            return
    mean: Tensor | None = None
    saved = last = time.monotonic()

    def save(*, finished: bool) -> None:
        write_state({"learner": learner.state(), "elapsed": elapsed, "done": done, "finished": finished}, path)

    while (progress := budget.progress(elapsed, done)) < 1:
        loss = learner.update(progress)
        done += 1
        mean = loss if mean is None else torch.lerp(mean, loss, 0.02)
        elapsed, last = elapsed + time.monotonic() - last, time.monotonic()
        if done % REPORT_EVERY == 0:
            show(learner.name, progress, f"loss {float(mean):.4f}, {done} updates")
        if time.monotonic() - saved > SAVE_EVERY:
            save(finished=False)
            saved = time.monotonic()
    save(finished=True)
    show(learner.name, 1.0, f"{done} updates" if mean is None else f"loss {float(mean):.4f}, {done} updates")


def rate_factor(progress: float, done: int, warm: int = 100, hold: float = 0.6, end: float = 0.03) -> float:
    """The learning rate's factor: up to 1 over `warm` updates, then 1, from progress `hold` linear down to `end`."""
    falling = 1.0 if progress < hold else end + (1 - end) * (1 - progress) / (1 - hold)
    return min(1.0, (done + 1) / warm) * falling


def mixed_precision(device: torch.device, *, convolutions: bool = False) -> AbstractContextManager[object]:
    """Autocast to bfloat16 where the hardware multiplies it faster than float32: CUDA, and some CPUs.

    CPUs without AMX are many times slower at the backward pass of bfloat16 convolutions, so these stay in
    float32 there.
    """
    fast = torch.cpu.get_capabilities().get("amx_bf16") if convolutions else has_fast_bfloat16()
    if device.type == "cuda" or (device.type == "cpu" and fast):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


class MovingAverage:
    """An exponential moving average of a network's parameters; its decay grows from 2/11 to `decay`."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.values = {name: value.detach().clone() for name, value in network.named_parameters()}

    def add(self, network: nn.Module) -> None:
        """Add the network's present weights to the average."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for name, value in network.named_parameters():
            self.values[name].lerp_(value.detach(), 1 - decay)

    def copy_to(self, network: nn.Module) -> None:
        """Write the average into the network."""
        for name, value in network.named_parameters():
            value.data.copy_(self.values[name])


class AveragedLearner:
    """What a stage keeps that learns a network and its moving average.

    `kept` is the name of the network: of its attribute, and of its weights in a state.
    """

    kept: ClassVar[str]
    average: MovingAverage
    optimizer: torch.optim.Optimizer
    device: torch.device
    rng: Random
    done: int

    def state(self) -> dict[str, Any]:
        """Weights, their average, optimizer and count of updates."""
        return {
            self.kept: getattr(self, self.kept).state_dict(),
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier state."""
        getattr(self, self.kept).load_state_dict(state[self.kept])
        self.average.values = {name: value.to(self.device) for name, value in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = self.average.count = state["done"]
        self.rng = Random(self.done)


def optimizer_step(optimizer: torch.optim.Optimizer, loss: Tensor, network: nn.Module, factor: float) -> None:
    """One optimizer step with clipped gradients, at `factor` of each group's own learning rate (`base`)."""
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
