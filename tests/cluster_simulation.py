"""A cluster without tensors, clocks or Ray: the real queue and the real choice of replicas, over simulated steps.

Time is simulated: a step of a replica takes `STEP` seconds and `LOAD` more for each LoRA that it loads. What is
measured in processor time is the gateways' own code.
"""

import heapq
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Final

from schnell.serving.cluster_view import ClusterView
from schnell.serving.jobs import Batch, QueuedJob
from schnell.serving.queue import JobQueue
from schnell.serving.replica_messages import ReplicaReport
from schnell.spec import AdapterUse, GenerationSpec, Job, JobOutcome

STEP: Final = 0.4
LOAD: Final = 0.3
STEPS: Final = 4
ROWS: Final = 4
_DONE: Final = JobOutcome(())


@dataclass
class SimulatedReplica:
    """One replica: a queue, and the time at which its step ends."""

    name: str
    queue: JobQueue[str]
    resident: set[str] = field(default_factory=set)
    is_busy: bool = False
    loads: int = 0

    def report(self) -> ReplicaReport:
        left = sum(self.queue.remaining_steps().values())
        return ReplicaReport(
            queue_seconds=left * STEP / ROWS,
            reference_seconds=STEPS * STEP / ROWS,
            resident=tuple(self.queue.held_adapters(idle_too=True)),
        )


@dataclass(frozen=True)
class Result:
    """What came of a simulation; times in simulated seconds, `gateway_seconds` of processor time."""

    drawn: int
    seconds: float
    hits: int
    waits: dict[str, list[float]]
    team_counts: Counter[str]
    gateway_seconds: float

    @property
    def hit_rate(self) -> float:
        return self.hits / self.drawn

    @property
    def longest_wait(self) -> float:
        return max(max(each) for each in self.waits.values())


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness (Jain, Chiu and Hawe, DEC-TR-301, 1984): 1 where all get the same."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


class Simulation:
    """`requests` of `teams` teams for `loras` LoRAs (Zipf-distributed, one each) on `replicas` replicas.

    They come at `load` of what the replicas draw; each team asks as often as every other.
    """

    def __init__(
        self, *, replicas: int, loras: int, teams: int, slots: int = 32, load: float = 0.8, seed: int = 1
    ) -> None:
        self._chance = random.Random(seed)
        self._view = ClusterView()
        self._replicas = {
            name: SimulatedReplica(name, JobQueue(lambda _: ROWS, slots)) for name in (f"r{n}" for n in range(replicas))
        }
        self._names = tuple(self._replicas)
        self._view.keep_only(self._names)
        self._loras = [AdapterUse(f"l{n}", f"lora {n}", Path(f"l{n}"), 1.0) for n in range(loras)]
        self._weights = list(accumulate(1 / rank for rank in range(1, loras + 1)))
        self._teams = [f"t{n}" for n in range(teams)]
        self._rate = load * replicas * ROWS / (STEPS * STEP)
        self._events: list[tuple[float, int, str, Batch[str] | None]] = []
        self._order = 0
        self._gateway = 0.0
        self._arrived: dict[str, tuple[float, str]] = {}
        self._waits: dict[str, list[float]] = {}
        self._hits = 0

    def run(self, requests: int) -> Result:
        spec = GenerationSpec("x", steps=STEPS)
        now, sent, drawn = 0.0, 0, 0
        next_arrival = 0.0
        next_report = 0.0
        while drawn < requests:
            if sent < requests and (not self._events or next_arrival <= self._events[0][0]):
                now = next_arrival
                self._arrive(now, sent, spec)
                sent += 1
                next_arrival += self._chance.expovariate(self._rate)
                continue
            now, _, name, batch = heapq.heappop(self._events)
            drawn += self._step_ends(now, self._replicas[name], batch)
            if now >= next_report:
                next_report = now + 1.0
                for replica in self._replicas.values():
                    self._view.report(replica.name, replica.report())
        counts = Counter({team: len(waits) for team, waits in self._waits.items()})
        return Result(drawn, now, self._hits, self._waits, counts, self._gateway)

    def _arrive(self, now: float, number: int, spec: GenerationSpec) -> None:
        team = self._teams[number % len(self._teams)]
        lora = self._chance.choices(self._loras, cum_weights=self._weights)[0]
        job = Job(str(number), team, spec, number, (lora,))
        start = time.thread_time()
        seconds = self._view.seconds_of(spec) or STEPS * STEP / ROWS
        name = self._view.rank(self._names, job, seconds)[0]
        self._view.sent(name, job, seconds)
        self._gateway += time.thread_time() - start
        replica = self._replicas[name]
        self._hits += lora.sha256 in replica.resident
        # on its way there counts as there: the next one for it waits for the same load
        replica.resident.add(lora.sha256)
        self._arrived[job.id] = (now, team)
        replica.queue.submit(job, "lane", 1, lambda _: None)
        if not replica.is_busy:
            self._step_begins(now, replica)

    def _step_begins(self, now: float, replica: SimulatedReplica) -> None:
        before = replica.queue.held_adapters(idle_too=True)
        batch = replica.queue.next_batch()
        replica.is_busy = batch is not None
        if batch is None:
            return
        loads = len(replica.queue.held_adapters(idle_too=True) - before)
        if loads:
            replica.loads += loads
            replica.resident = set(replica.queue.held_adapters(idle_too=True)) | {
                adapter for queued in replica.queue.jobs for adapter in queued.adapters
            }
        for queued in batch.newcomers:
            arrived, team = self._arrived.pop(queued.job.id)
            self._waits.setdefault(team, []).append(now - arrived)
        self._order += 1
        heapq.heappush(self._events, (now + STEP + loads * LOAD, self._order, replica.name, batch))

    def _step_ends(self, now: float, replica: SimulatedReplica, batch: Batch[str] | None) -> int:
        ended: list[QueuedJob[str]] = []
        if batch is not None:
            for row in replica.queue.complete_step(batch.rows):
                replica.queue.complete_decoding(row)
                ended.append(row.job)
        for queued in ended:
            replica.queue.settle(queued, _DONE)
            start = time.thread_time()
            self._view.returned(queued.job)
            self._gateway += time.thread_time() - start
        self._step_begins(now, replica)
        return len(ended)
