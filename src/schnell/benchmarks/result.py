from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """One figure: ours, the peer's, and ours as a multiple of the peer's (None where there is no peer)."""

    ours: float
    unit: str
    ours_is: str
    peer: float | None = None
    peer_is: str | None = None
    ratio: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self, name: str) -> dict[str, Any]:
        """The result in the form that `schnell bench --json` prints."""
        return {
            "ours": self.ours,
            "peer": self.peer,
            "ratio": self.ratio,
            "unit": self.unit,
            "ours_is": self.ours_is,
            "peer_is": self.peer_is,
            "details": dict(self.details),
            "command": f"schnell bench --only {name} --json",
        }


def seconds_of(action: Callable[[], object]) -> float:
    """How long a call takes."""
    start = perf_counter()
    action()
    return perf_counter() - start


def median_seconds(action: Callable[[], object], times: int = 7, warm_up: int = 1) -> float:
    """The median of several calls, after some that do not count."""
    for _ in range(warm_up):
        action()
    return median(seconds_of(action) for _ in range(times))


def median_pair(first: Callable[[], object], second: Callable[[], object], times: int = 7) -> tuple[float, float]:
    """Medians of two calls taken in turns, so that what else the machine does strikes both alike."""
    first(), second()
    pairs = [(seconds_of(first), seconds_of(second)) for _ in range(times)]
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)


ResultT = TypeVar("ResultT")


def in_own_thread(action: Callable[[], ResultT]) -> ResultT:
    """Run something that computes in a thread that ends with it.

    Every thread that has computed keeps a team of OpenMP threads for as long as it lives. Where the teams together have
    more threads than there are cores, libgomp lets them sleep between operations instead of spin (GOMP_SPINCOUNT), and
    a step takes twice as long. A server computes in one thread, so what a benchmark does beside must leave no team.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(action).result()
