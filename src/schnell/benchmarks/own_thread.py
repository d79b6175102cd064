"""One team of OpenMP threads at a time, however many threads a benchmark has."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

ResultT = TypeVar("ResultT")


def in_own_thread(action: Callable[[], ResultT]) -> ResultT:
    """Run something that computes in a thread that ends with it.

    Every thread that has computed keeps a team of OpenMP threads for as long as it lives. Where the teams together have
    more threads than there are cores, libgomp lets them sleep between operations instead of spin (GOMP_SPINCOUNT), and
    a step takes twice as long. A server computes in one thread, so what a benchmark does beside must leave no team.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(action).result()
