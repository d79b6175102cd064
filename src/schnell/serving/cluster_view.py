"""What one gateway knows of a cluster's replicas: their last reports, and what it has sent to each since.

Written from Ray's router thread and from the event loop, so it has a lock of its own; held for microseconds.
"""

import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from schnell.serving.affinity import ReplicaLoad, rank
from schnell.serving.replica_messages import REFERENCE, ReplicaReport
from schnell.spec import GenerationSpec, Job

#: For how long a replica that failed a job is tried last: its health check has found out by then.
_SUSPECT_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class _Sent:
    replica: str
    seconds: float
    adapters: tuple[str, ...]


@dataclass(slots=True)
class _Known:
    """One replica. Kept up to date job by job: with a hundred replicas, counting anew for each job costs too much."""

    report: ReplicaReport = field(default_factory=ReplicaReport)
    load: ReplicaLoad = field(default_factory=ReplicaLoad)
    expected: Counter[str] = field(default_factory=Counter)
    #: what other gateways had there when it reported, and what this one has there
    others_seconds: float = 0.0
    own_seconds: float = 0.0
    own_jobs: int = 0
    suspect_until: float = 0.0

    def __post_init__(self) -> None:
        self.load.expected = self.expected

    def count(self, sent: _Sent, sign: int) -> None:
        """A job comes (`sign` 1) or goes (-1)."""
        self.own_jobs += sign
        # nothing is left where there is nothing: sums of differences would drift
        self.own_seconds = max(0.0, self.own_seconds + sign * sent.seconds) if self.own_jobs > 0 else 0.0
        expected = self.expected
        for adapter in sent.adapters:
            expected[adapter] += sign
            if expected[adapter] <= 0:
                del expected[adapter]
        if sent.adapters:
            self.load.count()
        self.load.seconds = self.others_seconds + self.own_seconds

    def take(self, report: ReplicaReport) -> None:
        """The replica has reported."""
        self.report, self.load.resident, self.load.slots = report, frozenset(report.resident), report.adapter_slots
        self.load.count()
        self.others_seconds = max(0.0, report.queue_seconds - self.own_seconds)
        self.load.seconds = self.others_seconds + self.own_seconds


class ClusterView:
    """The replicas of a cluster as one gateway sees them. Times are of `time.monotonic`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._sent: dict[str, _Sent] = {}

    def keep_only(self, replicas: Collection[str]) -> None:
        """These are the replicas that take jobs now: others are forgotten, new ones begin without a report."""
        with self._lock:
            self._known = {each: self._known.get(each) or _Known() for each in replicas}

    def report(self, replica: str, report: ReplicaReport) -> None:
        """Take a replica's newest report. One of a replica that takes no jobs any more is left aside."""
        with self._lock:
            known = self._known.get(replica)
            if known is not None:
                known.take(report)

    def rank(self, candidates: Sequence[str], job: Job, own_seconds: float) -> list[str]:
        """Of these replicas, which to try first for a job; those that have just failed one go last."""
        moment = time.monotonic()
        with self._lock:
            loads = {each: self._known[each].load if each in self._known else ReplicaLoad() for each in candidates}
            suspects = {each for each, known in self._known.items() if known.suspect_until > moment}
            ordered = rank(loads, [adapter.sha256 for adapter in job.adapters], own_seconds)
        return sorted(ordered, key=suspects.__contains__) if suspects else ordered

    def sent(self, replica: str, job: Job, own_seconds: float) -> None:
        """A job is on its way to a replica, and to no other that it was meant for before."""
        with self._lock:
            self._take_back(job)
            sent = _Sent(replica, own_seconds, tuple(each.sha256 for each in job.adapters))
            self._sent[job.id] = sent
            if known := self._known.get(replica):
                known.count(sent, 1)

    def returned(self, job: Job) -> str | None:
        """A job is no longer at a replica: it ended, or is to be drawn elsewhere. Gives the replica, if it had one."""
        with self._lock:
            return self._take_back(job)

    def suspect(self, replica: str) -> None:
        """A replica has failed a job by dying, or by not being reached."""
        with self._lock:
            if known := self._known.get(replica):
                known.suspect_until = time.monotonic() + _SUSPECT_SECONDS

    def seconds_of(self, spec: GenerationSpec) -> float:
        """What a job takes by itself, by what pictures have taken on the slowest replica so far."""
        reference = max((each.reference_seconds for each in self.reports().values()), default=0.0)
        share = spec.size.width * spec.size.height * spec.steps * spec.num_outputs
        return reference * share / (REFERENCE.size.width * REFERENCE.size.height * REFERENCE.steps)

    def least_seconds(self) -> float | None:
        """The work before a new job on the replica that has the least; None without any replica."""
        with self._lock:
            return min((each.load.seconds for each in self._known.values()), default=None)

    def reports(self) -> Mapping[str, ReplicaReport]:
        """The last report of each replica that takes jobs."""
        with self._lock:
            return {name: known.report for name, known in self._known.items()}

    @property
    def in_flight(self) -> int:
        """How many jobs of this gateway are at replicas."""
        return len(self._sent)

    def _take_back(self, job: Job) -> str | None:
        sent = self._sent.pop(job.id, None)
        if sent is None:
            return None
        if known := self._known.get(sent.replica):
            known.count(sent, -1)
        return sent.replica


#: This process's: Ray makes the router (`ray_router.py`) itself, and hands nothing of ours to it.
VIEW: Final = ClusterView()
