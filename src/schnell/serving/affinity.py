"""Which replica draws a job: one that has its LoRAs in slots, unless that one is busier than another by a bound.

Loading a LoRA takes time and pushes out another one, so a job goes where its LoRAs are; a LoRA that is asked for more
than one replica can draw is loaded by a second one, and then has two. No tensors and no Ray here: the adapter to Ray's
router (`ray_router.py`) asks, and so does the simulation in `tests/cluster`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from zlib import crc32

#: How much longer a job waits for its LoRA's replica, in drawings of its own, before another one loads the LoRA.
PATIENCE: Final = 4.0
#: How much longer yet where all slots are taken: what is pushed out is most often asked for again, and loaded again.
EVICTION: Final = 1.5


@dataclass(slots=True)
class ReplicaLoad:
    """What is known of one replica: the seconds of work before a new job there, and the LoRAs in its slots.

    `resident` are content hashes, `expected` those of jobs on their way there. `slots` is how many it has (0: unknown,
    so never full).
    """

    seconds: float = 0.0
    resident: Collection[str] = ()
    expected: Collection[str] = ()
    slots: int = 0
    crowd: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.count()

    def count(self) -> None:
        """Count how many different LoRAs it has or will have: to be called when they have changed."""
        self.crowd = len(self.resident) + sum(each not in self.resident for each in self.expected)


def rank(
    loads: Mapping[str, ReplicaLoad], adapters: Sequence[str], own_seconds: float, patience: float = PATIENCE
) -> list[str]:
    """The replicas (ids) in the order in which they should be tried for a job of `own_seconds` with these LoRAs.

    Each LoRA that a replica would have to load counts as much as `patience` drawings that lie before the job, and
    `EVICTION` more where it pushes another one out. Where that decides nothing, the replica with fewer LoRAs goes
    first; among equals, every gateway finds the same one.
    """
    own = max(own_seconds, 1e-3)
    # one loop without calls of our own: a gateway does this for each job, for as many replicas as there are
    wanted = "\0".join(("", *adapters)).encode()
    costs = []
    for replica, load in loads.items():
        missing = 0
        for adapter in adapters:
            if adapter not in load.resident and adapter not in load.expected:
                missing += 1
        seconds = load.seconds
        if missing:
            pushed_out = min(missing, max(0, load.crowd + missing - load.slots)) if load.slots else 0
            seconds += own * (patience * missing + EVICTION * pushed_out)
        costs.append((seconds, load.crowd if adapters else 0, crc32(wanted, _first_hash(replica)), replica))
    costs.sort()
    return [replica for *_, replica in costs]


@lru_cache(maxsize=4096)
def _first_hash(replica: str) -> int:
    """Where rendezvous hashing begins (Thaler and Ravishankar, IEEE/ACM ToN 1998): it goes on with a job's LoRAs, and
    makes a stable choice, another for each of them."""
    # of quality enough, and a tenth of a cryptographic hash's time
    return crc32(replica.encode())
