"""A cluster without tensors, clocks or Ray: the real queue, choice of replicas and ledger, over simulated steps.

Time is simulated: a step of a replica takes `step` seconds and `load` more for each LoRA that it loads. What is
measured in processor time is the gateways' own code: where a job goes, and its credits.
"""

import heapq
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import quantiles
from typing import ClassVar

from schnell.accounts.credits import Reservation
from schnell.serving.cluster_view import ClusterView
from schnell.serving.jobs import Batch, QueuedJob
from schnell.serving.queue import JobQueue
from schnell.serving.replica_messages import ReplicaReport
from schnell.spec import AdapterUse, GenerationSpec, Job, JobOutcome
from simulated_ledger import SimulatedLedger

_DONE = JobOutcome(())


@dataclass(frozen=True)
class Shape:
    """How large a cluster is, and what its replicas do. `load`: of what they can draw, how much is asked for.

    A step takes `step` seconds whatever is in it; loading a LoRA takes `loading`.
    """

    replicas: int
    loras: int
    teams: int = 1
    gateways: int = 1
    slots: int = 32
    rows: int = 4
    steps: int = 4
    step: float = 0.4
    loading: float = 0.3
    load: float = 0.8

    @property
    def picture_seconds(self) -> float:
        """What a picture takes of a replica that is busy with nothing else than pictures."""
        return self.steps * self.step / self.rows


@dataclass
class SimulatedReplica:
    """One replica: its queue, and whether a step is under way. `resident` counts what is on its way there, too."""

    name: str
    queue: JobQueue[str]
    resident: set[str] = field(default_factory=set)
    is_busy: bool = False
    loads: int = 0

    def report(self, shape: Shape) -> ReplicaReport:
        left = sum(self.queue.remaining_steps().values())
        return ReplicaReport(
            queue_seconds=left * shape.step / shape.rows,
            # of a picture of 1024 x 1024 in four steps, which is what everybody asks for here
            reference_seconds=4 * shape.step / shape.rows,
            resident=tuple(self.queue.held_adapters(idle_too=True)),
            adapter_slots=shape.slots,
        )


@dataclass(frozen=True)
class Result:
    """What came of a simulation; times in simulated seconds, `gateway_seconds` of processor time."""

    drawn: int
    refused: int
    seconds: float
    hits: int
    loads: int
    waits: dict[str, list[float]]
    answers: list[float]
    gateway_seconds: float

    @property
    def hit_rate(self) -> float:
        return self.hits / self.drawn

    @property
    def longest_wait(self) -> float:
        return max(max(each) for each in self.waits.values())

    @property
    def late(self) -> float:
        """The 95th percentile of answers."""
        return quantiles(self.answers, n=20)[-1]


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness (Jain, Chiu and Hawe, DEC-TR-301, 1984): 1 where all get the same."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


@dataclass
class _Asked:
    """A request under way: when it came, whose it is, the gateway that has it, and its credits."""

    at: float
    team: str
    gateway: ClusterView
    reservation: Reservation | None


def _read_twice() -> float:
    start = time.thread_time()
    return time.thread_time() - start


class Meter:
    """Processor time between `start` and `stop`. Only some is measured: reading the clock costs more than the rest."""

    _EVERY: ClassVar = 29

    def __init__(self) -> None:
        self._count = self._measured = 0
        self._sum = self._start = 0.0
        self._own = min(_read_twice() for _ in range(50))

    def start(self) -> None:
        if self._count % self._EVERY == 0:
            self._start = time.thread_time()

    def stop(self) -> None:
        if self._count % self._EVERY == 0:
            self._sum += max(0.0, time.thread_time() - self._start - self._own)
            self._measured += 1
        self._count += 1

    @property
    def seconds(self) -> float:
        return self._sum / max(1, self._measured) * self._count


class Simulation:
    """Requests of teams that ask equally often for LoRAs (Zipf-distributed, one each). Without a ledger all is free."""

    def __init__(self, shape: Shape, ledger: SimulatedLedger | None = None, seed: int = 1) -> None:
        self._shape = shape
        self._ledger = ledger
        self._chance = random.Random(seed)
        self._replicas = {
            name: SimulatedReplica(name, JobQueue(lambda _: shape.rows, shape.slots))
            for name in (f"r{n}" for n in range(shape.replicas))
        }
        self._names = tuple(self._replicas)
        # each knows the replicas' reports and its own jobs, and nothing of the others'
        self._gateways = [ClusterView() for _ in range(shape.gateways)]
        for view in self._gateways:
            view.keep_only(self._names)
        self._spec = GenerationSpec("x", steps=shape.steps)
        self._loras = [AdapterUse(f"l{n}", f"lora {n}", Path(f"l{n}"), 1.0) for n in range(shape.loras)]
        self._weights = list(accumulate(1 / rank for rank in range(1, shape.loras + 1)))
        self._rate = shape.load * shape.replicas / shape.picture_seconds
        self._events: list[tuple[float, int, str, Batch[str] | None]] = []
        self._asked: dict[str, _Asked] = {}
        self._waits: dict[str, list[float]] = {}
        self._answers: list[float] = []
        self._order = self._hits = self._refused = 0
        self._meters = {name: Meter() for name in ("accept", "close", "report")}

    async def run(self, requests: int, tell: Callable[[Result], None] = lambda _: None) -> Result:
        """Simulate so many requests. `tell` gets what was found so far, ten times: a million take a long time."""
        now, sent = 0.0, 0
        next_arrival = next_report = 0.0
        while len(self._answers) + self._refused < requests:
            if sent < requests and (not self._events or next_arrival <= self._events[0][0]):
                now = next_arrival
                await self._arrive(now, sent)
                sent += 1
                if sent % (requests // 10) == 0:
                    tell(self._result(now))
                next_arrival += self._chance.expovariate(self._rate)
                continue
            now, _, name, batch = heapq.heappop(self._events)
            await self._step_ends(now, self._replicas[name], batch)
            if now >= next_report:
                next_report = now + 1.0
                self._report_all()
        return self._result(now)

    def _result(self, now: float) -> Result:
        loads = sum(each.loads for each in self._replicas.values())
        return Result(
            len(self._answers),
            self._refused,
            now,
            self._hits,
            loads,
            self._waits,
            self._answers,
            sum(each.seconds for each in self._meters.values()),
        )

    def _report_all(self) -> None:
        """Every second, through Ray's controller, to all gateways."""
        for replica in self._replicas.values():
            report = replica.report(self._shape)
            self._meters["report"].start()
            for view in self._gateways:
                view.report(replica.name, report)
            self._meters["report"].stop()

    async def _arrive(self, now: float, number: int) -> None:
        team = f"t{number % self._shape.teams}"
        lora = self._chance.choices(self._loras, cum_weights=self._weights)[0]
        job = Job(str(number), team, self._spec, number, (lora,))
        view = self._gateways[number % len(self._gateways)]
        self._meters["accept"].start()
        reservation = await self._ledger.accept(job) if self._ledger else None
        if self._ledger and reservation is None:
            self._meters["accept"].stop()
            self._refused += 1
            return
        seconds = view.seconds_of(self._spec) or self._shape.picture_seconds
        name = view.rank(self._names, job, seconds)[0]
        view.sent(name, job, seconds)
        self._meters["accept"].stop()
        replica = self._replicas[name]
        self._hits += lora.sha256 in replica.resident
        # on its way there counts as there: the next one for it waits for the same load
        replica.resident.add(lora.sha256)
        self._asked[job.id] = _Asked(now, team, view, reservation)
        replica.queue.submit(job, "lane", 1, lambda _: None)
        if not replica.is_busy:
            self._step_begins(now, replica)

    def _step_begins(self, now: float, replica: SimulatedReplica) -> None:
        before = set(replica.queue.held_adapters(idle_too=True))
        batch = replica.queue.next_batch()
        replica.is_busy = batch is not None
        if batch is None:
            return
        loads = len(set(replica.queue.held_adapters(idle_too=True)) - before)
        if loads:
            replica.loads += loads
            replica.resident = set(replica.queue.held_adapters(idle_too=True)) | {
                adapter for queued in replica.queue.jobs for adapter in queued.adapters
            }
        for queued in batch.newcomers:
            asked = self._asked[queued.job.id]
            self._waits.setdefault(asked.team, []).append(now - asked.at)
        self._order += 1
        ends = now + self._shape.step + loads * self._shape.loading
        heapq.heappush(self._events, (ends, self._order, replica.name, batch))

    async def _step_ends(self, now: float, replica: SimulatedReplica, batch: Batch[str] | None) -> None:
        ended: list[QueuedJob[str]] = []
        if batch is not None:
            for row in replica.queue.complete_step(batch.rows):
                replica.queue.complete_decoding(row)
                ended.append(row.job)
        for queued in ended:
            replica.queue.settle(queued, _DONE)
            asked = self._asked.pop(queued.job.id)
            self._answers.append(now - asked.at)
            report = replica.report(self._shape)
            self._meters["close"].start()
            if self._ledger and asked.reservation:
                await self._ledger.close(asked.reservation)
            asked.gateway.returned(queued.job)
            asked.gateway.report(replica.name, report)
            self._meters["close"].stop()
        self._step_begins(now, replica)
