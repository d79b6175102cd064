"""A job and its rows as the queue keeps them: what was asked for, and how far each output is."""

from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from schnell.spec import GeneratedImage, Job, JobOutcome, ProgressListener

LaneT = TypeVar("LaneT", bound=Hashable)

#: Where an output stands: before its first step, between steps, all steps taken, decoded, its file written or flagged.
RowState = Literal["waiting", "denoising", "decoding", "finishing", "finished"]


@dataclass(slots=True, eq=False)
class Row(Generic[LaneT]):
    """One output of a job, after `step` of its steps. Of equal tags, the lower `order` (of arrival) goes first."""

    job: "QueuedJob[LaneT]"
    index: int
    tag: float
    order: int
    step: int = 0
    state: RowState = "waiting"

    @property
    def turn(self) -> tuple[float, int]:
        """What rows are sorted by."""
        return (self.tag, self.order)

    @property
    def is_decoded(self) -> bool:
        """Whether its latents are needed no more."""
        return self.state in {"finishing", "finished"}


@dataclass(slots=True, eq=False)
class QueuedJob(Generic[LaneT]):
    """A job in the queue, and all that is known of how far it is.

    Jobs are told apart by identity, never by `job.id`: two jobs with one id are two jobs. `tokens` is the size of one
    output, `only_on` the one device that may draw it (None: any), `device` the one that does, from its first step on.
    `slots` are the leased ones there, in the order of `job.adapters`; None before the lease and after it. `adapters`
    are the content hashes of its LoRAs, `images` the files of finished outputs (None: flagged), `position` the jobs
    ahead as they were last told.
    """

    job: Job
    lane: LaneT
    listener: ProgressListener
    tokens: int = 1
    only_on: int | None = None
    device: int | None = None
    future: "Future[JobOutcome]" = field(default_factory=Future)
    rows: tuple[Row[LaneT], ...] = ()
    slots: tuple[int, ...] | None = None
    position: int | None = None
    images: dict[int, GeneratedImage | None] = field(default_factory=dict)
    is_over: bool = False
    adapters: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.adapters = tuple(adapter.sha256 for adapter in self.job.adapters)

    @property
    def is_started(self) -> bool:
        """Whether one of its rows has taken part in a batch."""
        return self.slots is not None or any(row.state != "waiting" for row in self.rows)

    @property
    def steps_left(self) -> int:
        """Denoising steps that its rows have still to take, in all."""
        return sum(self.job.spec.steps - row.step for row in self.rows)

    @property
    def work_left(self) -> int:
        """What these steps cost, in tokens: steps of any size can be added up by it."""
        return self.steps_left * self.tokens

    def begin_again(self) -> None:
        """Forget what was drawn so far, and where: every row waits again, in its old turn."""
        # other objects: what a thread still does with the old rows has no effect on the new ones
        self.rows = tuple(Row(self, row.index, row.tag, row.order) for row in self.rows)
        self.images.clear()
        self.slots = self.device = self.position = None


@dataclass(frozen=True, slots=True)
class Batch(Generic[LaneT]):
    """Rows of one lane that take the next step together; `newcomers` are the jobs whose first step it is."""

    lane: LaneT
    rows: tuple[Row[LaneT], ...]
    newcomers: tuple[QueuedJob[LaneT], ...] = ()
