"""A job inside the worker, and what the worker tells of itself."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from schnell.clock import Stopwatch
from schnell.engine.denoise import Drawing
from schnell.engine.device import Precision
from schnell.engine.text import PromptEmbedding
from schnell.errors import GenerationFailedError, SchnellError
from schnell.spec import GeneratedImage, Job, JobOutcome, ProgressListener, RunnerSnapshot, Size


@dataclass(frozen=True, slots=True)
class LaneKey:
    """What rows of a batch must agree in."""

    grid: Size
    precision: Precision


@dataclass(slots=True)
class ActiveJob:
    """A job inside the worker, and what has become of its outputs so far."""

    job: Job
    lane: LaneKey
    listener: ProgressListener
    future: Future[JobOutcome]
    watch: Stopwatch = field(default_factory=Stopwatch)
    prompt: PromptEmbedding | None = None
    drawings: dict[int, Drawing] = field(default_factory=dict)
    finished: dict[int, GeneratedImage | None] = field(default_factory=dict)
    position: int | None = None
    holds_slots: bool = False

    undecoded: int = field(init=False)

    def __post_init__(self) -> None:
        self.undecoded = self.job.spec.num_outputs

    def settle(self, outcome: JobOutcome) -> None:
        """Hand over the outcome, unless the job was cancelled."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(outcome)

    def settle_with(self, error: Exception) -> None:
        """Report a failure, unless the job has ended. What only a stack trace could explain is left to the log."""
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        hidden = GenerationFailedError("the picture could not be drawn; nothing was charged")
        self.future.set_exception(error if isinstance(error, SchnellError) else hidden)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """The worker as others may see it: replaced whole after every step, so that any thread can read it."""

    snapshot: RunnerSnapshot = field(default_factory=RunnerSnapshot)
    backlog_seconds: float = 0.0
    seconds_per_row: Mapping[LaneKey, float] = field(default_factory=dict)
