"""Which replica draws a job: one that has its LoRAs in slots, unless that one is busier than another by a bound.

Loading a LoRA takes time and pushes out another one, so a job goes where its LoRAs are; a LoRA that is asked for more
than one replica can draw is loaded by a second one, and then has two. No tensors and no Ray here: the adapter to Ray's
router (`ray_router.py`) asks, and so does the simulation in `tests/cluster`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
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

    def cost(replica: str) -> tuple[float, int, int]:
        load = loads[replica]
        missing = sum(adapter not in load.resident and adapter not in load.expected for adapter in adapters)
        pushed_out = min(missing, max(0, load.crowd + missing - load.slots)) if load.slots else 0
        price = own * (patience * missing + EVICTION * pushed_out)
        return (load.seconds + price, load.crowd if adapters else 0, _weight(replica, adapters))

    return sorted(loads, key=cost)


def _weight(replica: str, adapters: Sequence[str]) -> int:
    """Rendezvous hashing (Thaler and Ravishankar, IEEE/ACM ToN 1998): a stable choice, another for each LoRA."""
    # of quality enough, and a tenth of a cryptographic hash's time
    return crc32("\0".join((replica, *adapters)).encode())
