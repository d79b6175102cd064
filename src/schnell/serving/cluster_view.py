"""What one gateway knows of a cluster's replicas: their last reports, and what it has sent to each since.

Written from Ray's router thread and from the event loop, so it has a lock of its own; held for microseconds.
"""

import threading
import time
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
    adapters: frozenset[str]


@dataclass(slots=True)
class _Known:
    report: ReplicaReport = field(default_factory=ReplicaReport)
    #: what other gateways had there when it reported
    others_seconds: float = 0.0
    suspect_until: float = 0.0


class ClusterView:
    """The replicas of a cluster as one gateway sees them. Times are of `time.monotonic`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._sent: dict[str, _Sent] = {}

    def keep_only(self, replicas: Collection[str]) -> None:
        """These are the replicas that take jobs now: others are forgotten, new ones begin without a report."""
        with self._lock:
            self._known = {each: self._known.get(each, _Known()) for each in replicas}

    def report(self, replica: str, report: ReplicaReport) -> None:
        """Take a replica's newest report. One of a replica that takes no jobs any more is left aside."""
        with self._lock:
            known = self._known.get(replica)
            if known is not None:
                own = sum(each.seconds for each in self._sent.values() if each.replica == replica)
                known.report, known.others_seconds = report, max(0.0, report.queue_seconds - own)

    def rank(self, candidates: Sequence[str], job: Job, own_seconds: float) -> list[str]:
        """Of these replicas, which to try first for a job; those that have just failed one go last."""
        moment = time.monotonic()
        adapters = [adapter.sha256 for adapter in job.adapters]
        with self._lock:
            loads = self._loads(candidates)
            suspects = {each for each in candidates if self._is_suspect(each, moment)}
        ordered = rank(loads, adapters, own_seconds)
        return sorted(ordered, key=suspects.__contains__)

    def sent(self, replica: str, job: Job, own_seconds: float) -> None:
        """A job is on its way to a replica."""
        with self._lock:
            self._sent[job.id] = _Sent(replica, own_seconds, frozenset(each.sha256 for each in job.adapters))

    def returned(self, job: Job) -> str | None:
        """A job is no longer at a replica: it ended, or is to be drawn elsewhere. Gives the replica, if it had one."""
        with self._lock:
            sent = self._sent.pop(job.id, None)
        return sent.replica if sent else None

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
            loads = self._loads(tuple(self._known))
        return min((each.seconds for each in loads.values()), default=None)

    def reports(self) -> Mapping[str, ReplicaReport]:
        """The last report of each replica that takes jobs."""
        with self._lock:
            return {name: known.report for name, known in self._known.items()}

    @property
    def in_flight(self) -> int:
        """How many jobs of this gateway are at replicas."""
        return len(self._sent)

    def _is_suspect(self, replica: str, moment: float) -> bool:
        known = self._known.get(replica)
        return known is not None and moment < known.suspect_until

    def _loads(self, replicas: Collection[str]) -> dict[str, ReplicaLoad]:
        seconds = dict.fromkeys(replicas, 0.0)
        resident: dict[str, set[str]] = {each: set() for each in replicas}
        for replica in replicas:
            if known := self._known.get(replica):
                seconds[replica] = known.others_seconds
                resident[replica].update(known.report.resident)
        for sent in self._sent.values():
            if sent.replica in seconds:
                seconds[sent.replica] += sent.seconds
                resident[sent.replica].update(sent.adapters)
        return {each: ReplicaLoad(seconds[each], frozenset(resident[each])) for each in replicas}


#: This process's: Ray makes the router (`ray_router.py`) itself, and hands nothing of ours to it.
VIEW: Final = ClusterView()
