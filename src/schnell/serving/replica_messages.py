"""What replicas tell gateways: how they are, and what became of a job. Values only: gateways have no torch."""

from dataclasses import dataclass
from typing import Final

from schnell.errors import SchnellError
from schnell.spec import DeviceSnapshot, GenerationSpec, JobOutcome, Progress, Size

#: What `ReplicaReport.reference_seconds` is told of.
REFERENCE: Final = GenerationSpec("a picture", Size(1024, 1024), steps=4)


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a replica tells of itself, every second and with each picture.

    `queue_seconds` is the work before a new job, `reference_seconds` what one picture of 1024x1024 in four steps takes
    there (0: none was drawn yet). `resident` are the hashes of the LoRAs in slots, `adapter_slots` how many have room,
    `plan` the lines of its memory plan.
    """

    queue_seconds: float = 0.0
    reference_seconds: float = 0.0
    queued: int = 0
    resident: tuple[str, ...] = ()
    adapter_slots: int = 8
    devices: tuple[DeviceSnapshot, ...] = ()
    plan: tuple[str, ...] = ()
    host: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """What a replica says of a job: a `progress`, then one `outcome` or `error`, or that a file is `missing`.

    The last one carries a `report`, so that a gateway knows what has changed before it sends the next job.
    """

    progress: Progress | None = None
    outcome: JobOutcome | None = None
    error: SchnellError | None = None
    missing: str | None = None
    report: ReplicaReport | None = None
