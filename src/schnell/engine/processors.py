"""How many processors this process may really use: a container's quota is not in what the system counts.

A container of 2 CPUs on a host of 64 sees 64. With a thread for each, the kernel stops all of them for most of every
period, and every barrier of a matrix product waits for the last one.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import torch

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")


def fit_threads_to_quota() -> int:
    """Let torch compute with no more threads than the quota has processors; the operator's `OMP_NUM_THREADS` counts.

    Gives the number of threads.
    """
    quota = read_quota()
    if quota is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), max(1, int(quota))))
    return torch.get_num_threads()


def read_quota(own: Path = _OWN_CGROUPS, root: Path = _CGROUPS) -> float | None:
    """The processors that this process's control groups allow it, such as 1.5; None where they set no limit.

    Every group above one's own limits, too, so the least of them counts. Both versions of control groups are read
    (https://docs.kernel.org/admin-guide/cgroup-v2.html, `cpu.max`; https://docs.kernel.org/scheduler/sched-bwc.html,
    `cpu.cfs_quota_us`).
    """
    return min(_quotas(own, root), default=None)


def _quotas(own: Path, root: Path) -> Iterator[float]:
    try:
        lines = own.read_text("ascii").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        # in a container, its own groups may be mounted as the root: the path is then not below it
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            folder = root / str(group).lstrip("/") if not controllers else root / "cpu" / str(group).lstrip("/")
            found = _read_v1(folder) if controllers else _read_v2(folder)
            if found is not None:
                yield found


def _read_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text("ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _read_v1(folder: Path) -> float | None:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text("ascii")) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
