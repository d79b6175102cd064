"""What a benchmark gives, and how it takes time."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """One figure: ours, the peer's, and their ratio (None where there is no peer, or nothing to divide).

    `ratio` is ours over the peer's, for times and for rates, unless a benchmark says otherwise.
    """

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


def _nothing() -> None:
    """What has to be waited for where calls are done when they return."""


def seconds_of(action: Callable[[], object], settle: Callable[[], None] = _nothing) -> float:
    """The seconds that a call takes. A GPU returns before it is done: `settle` waits for it, before and after."""
    settle()
    start = perf_counter()
    action()
    settle()
    return perf_counter() - start


def median_pair(
    first: Callable[[], object],
    second: Callable[[], object],
    times: int = 7,
    settle: Callable[[], None] = _nothing,
) -> tuple[float, float]:
    """Median seconds of two calls made in turns, so that other load on the machine slows both alike."""
    first(), second()  # caches and memory pools fill: not counted
    pairs = [(seconds_of(first, settle), seconds_of(second, settle)) for _ in range(times)]
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)


def compare_seconds(
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    ours_is: str,
    peer_is: str,
    times: int = 7,
) -> BenchmarkResult:
    """The median seconds of two calls made in turns, as a result. Both end with a picture or file, so with all done."""
    our_seconds, peer_seconds = median_pair(ours, peer, times)
    return BenchmarkResult(
        ours=our_seconds,
        unit="s",
        ours_is=ours_is,
        peer=peer_seconds,
        peer_is=peer_is,
        ratio=our_seconds / peer_seconds,
    )


ResultT = TypeVar("ResultT")


def in_own_thread(action: Callable[[], ResultT]) -> ResultT:
    """Run `action`, which computes with torch, in a thread that ends with it.

    A thread that has computed keeps its team of OpenMP threads until it ends. Where all teams together have more
    threads than there are cores, libgomp lets them sleep between operations instead of spin (GOMP_SPINCOUNT), and a
    step takes twice as long. A server computes in one thread only, so nothing else in a benchmark may leave a team.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(action).result()
