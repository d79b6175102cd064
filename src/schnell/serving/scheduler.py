"""Which rows take the next denoising step together. No tensors here: only names, sizes and turns.

A *row* is one output of one job. Rows of one *lane* (token grid and precision) can share a batch. Every row gets a
start tag when it arrives, by start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): a team that asks for much
gets tags further in the future, a team that asks for little stays near the present. The row with the smallest tag
decides the lane of the next step, so no lane and no team starves; started rows of that lane come first, so that they
leave soon; then newcomers, in the order of their tags, up to the lane's batch limit and while their LoRAs fit into the
slots.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from schnell.errors import ServerBusyError

LaneT = TypeVar("LaneT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class RowKey:
    """One output of one job."""

    job_id: str
    index: int


@dataclass(frozen=True, slots=True)
class Row(Generic[LaneT]):
    """A row in the schedule, after `step` of its `steps`. Of equal tags, the lower `order` (of arrival) goes first."""

    key: RowKey
    team_id: str
    lane: LaneT
    adapters: frozenset[str]
    steps: int
    step: int
    tag: float
    order: int

    @property
    def is_started(self) -> bool:
        """Whether this row took part in a batch before."""
        return self.step > 0


@dataclass(frozen=True, slots=True)
class Batch(Generic[LaneT]):
    """Rows of one lane that take the next step together."""

    lane: LaneT
    rows: tuple[Row[LaneT], ...]


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many jobs may wait or run, in all and of one team."""

    jobs: int = 1024
    jobs_per_team: int = 512


@dataclass(frozen=True, slots=True)
class Entry(Generic[LaneT]):
    """A job as the scheduler sees it: whose it is, its lane and LoRAs, and how many outputs of how much work."""

    job_id: str
    team_id: str
    lane: LaneT
    outputs: int
    steps: int
    tokens: int
    adapters: frozenset[str] = frozenset()


_DEFAULT_LIMITS = QueueLimits()


class Scheduler(Generic[LaneT]):
    """Takes jobs, hands out batches, forgets rows that are done.

    `batch_limit` gives the most rows that a batch of a lane may have; `adapter_slots` is how many different LoRAs can
    be held for started rows; `weights` gives teams more or less than one share.
    """

    def __init__(
        self,
        batch_limit: Callable[[LaneT], int],
        adapter_slots: int = 8,
        limits: QueueLimits = _DEFAULT_LIMITS,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._batch_limit = batch_limit
        self._adapter_slots = adapter_slots
        self._limits = limits
        self._weights = dict(weights or {})
        self._rows: dict[RowKey, Row[LaneT]] = {}
        self._jobs: dict[str, str] = {}
        self._virtual_time = 0.0
        self._team_tags: dict[str, float] = {}
        self._arrivals = 0

    def add(self, entry: Entry[LaneT]) -> None:
        """Queue every output of a job.

        Raises:
            ServerBusyError: too many jobs, in all or of this team.
        """
        self._check_limits(entry.team_id)
        self._jobs[entry.job_id] = entry.team_id
        for index in range(entry.outputs):
            key = RowKey(entry.job_id, index)
            tag = self._next_tag(entry.team_id, cost=float(entry.steps * entry.tokens))
            self._arrivals += 1
            self._rows[key] = Row(
                key, entry.team_id, entry.lane, entry.adapters, entry.steps, step=0, tag=tag, order=self._arrivals
            )

    def next_batch(self) -> Batch[LaneT] | None:
        """The rows of the next step; None if nothing waits."""
        if not self._rows:
            return None
        lead = min(self._rows.values(), key=_turn)
        self._virtual_time = max(self._virtual_time, lead.tag)
        rows = self._select(lead.lane)
        if not rows:
            # every slot is held by started rows of other lanes: let those go on until a slot is free
            started = min((row for row in self._rows.values() if row.is_started), key=_turn)
            return Batch(started.lane, self._select(started.lane))
        return Batch(lead.lane, rows)

    def _select(self, lane: LaneT) -> tuple[Row[LaneT], ...]:
        limit = max(1, self._batch_limit(lane))
        in_lane = sorted((row for row in self._rows.values() if row.lane == lane), key=_turn)
        chosen = [row for row in in_lane if row.is_started][:limit]
        held = frozenset[str]().union(*(row.adapters for row in self._rows.values() if row.is_started))
        passed_over: set[str] = set()
        for row in in_lane:
            if len(chosen) == limit:
                break
            if row.is_started or row.team_id in passed_over:
                continue
            if len(held | row.adapters) > self._adapter_slots:
                passed_over.add(row.team_id)  # a team's pictures are begun in the order it asked for them
                continue
            held |= row.adapters
            chosen.append(row)
        return tuple(chosen)

    def complete_step(self, rows: tuple[Row[LaneT], ...]) -> tuple[RowKey, ...]:
        """Count a step for these rows; gives, and forgets, those that took their last."""
        done = []
        for row in rows:
            if row.key not in self._rows:
                continue  # its job was removed while the step ran
            if row.step + 1 == row.steps:
                self._forget(row.key)
                done.append(row.key)
            else:
                self._rows[row.key] = replace(row, step=row.step + 1)
        return tuple(done)

    def remove(self, job_id: str) -> None:
        """Forget a job that was cancelled or failed. Unknown jobs are ignored."""
        for key in [key for key in self._rows if key.job_id == job_id]:
            del self._rows[key]
        self._jobs.pop(job_id, None)

    @property
    def job_count(self) -> int:
        """Jobs that wait or run."""
        return len(self._jobs)

    @property
    def started_rows(self) -> int:
        """Rows between their first and their last step."""
        return sum(row.is_started for row in self._rows.values())

    def waiting_jobs(self) -> tuple[str, ...]:
        """Jobs none of whose rows has started, first to start first."""
        started = {key.job_id for key, row in self._rows.items() if row.is_started}
        ordered = sorted(self._rows.values(), key=_turn)
        return tuple(dict.fromkeys(row.key.job_id for row in ordered if row.key.job_id not in started))

    def remaining_steps(self) -> Mapping[LaneT, int]:
        """Row-steps still to be done, by lane."""
        left: Counter[LaneT] = Counter()
        for row in self._rows.values():
            left[row.lane] += row.steps - row.step
        return left

    def _check_limits(self, team_id: str) -> None:
        if len(self._jobs) >= self._limits.jobs:
            raise ServerBusyError(f"the queue is full ({self._limits.jobs} jobs); try again later")
        if Counter(self._jobs.values())[team_id] >= self._limits.jobs_per_team:
            raise ServerBusyError(f"your team has {self._limits.jobs_per_team} jobs in the queue; try again later")

    def _next_tag(self, team_id: str, cost: float) -> float:
        tag = max(self._virtual_time, self._team_tags.get(team_id, 0.0))
        self._team_tags[team_id] = tag + cost / self._weights.get(team_id, 1.0)
        return tag

    def _forget(self, key: RowKey) -> None:
        del self._rows[key]
        if not any(other.job_id == key.job_id for other in self._rows):
            self._jobs.pop(key.job_id, None)
        if not self._rows:
            self._team_tags.clear()
            self._virtual_time = 0.0


def _turn(row: Row[LaneT]) -> tuple[float, int]:
    return (row.tag, row.order)
