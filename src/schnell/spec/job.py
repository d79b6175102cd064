"""A job on its way through a runner: what is drawn, how far it is, and what came out."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any, Final, Literal, Self

from schnell.spec.generation import MAX_LORA_SCALE, MIN_LORA_SCALE, GenerationSpec


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """One LoRA of a job: the name that was asked for, the converted file, the SHA-256 of its content, and its scale."""

    name: str
    sha256: str
    path: Path
    scale: float


def combine_adapters(uses: Iterable[AdapterUse], factor: float = 1.0) -> tuple[AdapterUse, ...]:
    """LoRAs whose files have the same content, whatever they are called, as one: its scales added.

    Each sum is multiplied by `factor`, and cut to the range of scales. An engine holds one content in one slot, so a
    picture could not use it twice.
    """
    combined: dict[str, AdapterUse] = {}
    for use in uses:
        known = combined.get(use.sha256)
        combined[use.sha256] = use if known is None else replace(known, scale=known.scale + use.scale)
    return tuple(
        replace(use, scale=min(max(use.scale * factor, MIN_LORA_SCALE), MAX_LORA_SCALE)) for use in combined.values()
    )


@dataclass(frozen=True, slots=True)
class Job:
    """An accepted request with its seed decided and its LoRAs as files on this machine.

    `wants_previews` asks for small pictures of the unfinished outputs in its `Progress`.
    """

    id: str
    team_id: str
    spec: GenerationSpec
    seed: int
    adapters: tuple[AdapterUse, ...] = ()
    wants_previews: bool = False


@dataclass(frozen=True, slots=True)
class MissingAdapter:
    """One LoRA of a request that is not on this machine yet: it is fetched once the request is accepted.

    `field` is the request's field that names it, `reference` what stands there with its secrets, `name` without them.
    """

    field: str
    reference: str = dataclass_field(repr=False)
    name: str
    scale: float


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """A LoRA's download: bytes received so far, and bytes in all (None where the server does not say)."""

    lora: str
    received: int
    total: int | None = None


FetchListener = Callable[[FetchProgress], None]

#: Where a job is. A worker reports `queued` and `denoise` only; `fetch` comes before it does, while a LoRA is
#: downloaded; `text` and `decode` come from a job that an engine draws alone, as `schnell generate` does.
Stage = Literal["queued", "fetch", "text", "denoise", "decode"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is. `position` is the number of jobs ahead of it while it is queued.

    `step` of `total` denoising steps are done. `previews` holds one small PNG an output,
    made from an estimate of the finished latents, if the job wants them. `fetched` is how far a download is. `attempt`
    is 2 or more for a job that a cluster began again, because the replica that drew it failed.
    """

    stage: Stage
    step: int = 0
    total: int = 0
    position: int | None = None
    previews: tuple[bytes, ...] = ()
    fetched: FetchProgress | None = None
    attempt: int = 1


ProgressListener = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One finished picture of a job, output `index`: an encoded file of exactly the size asked for.

    `receipt` is what is needed to draw it again; the file holds it too. `mark` is what its invisible mark carries (ten
    hexadecimal digits), `manifest` the label of its signed credentials; None where it has none.
    """

    index: int
    seed: int
    data: bytes
    media_type: str
    width: int
    height: int
    receipt: Mapping[str, Any]
    mark: str | None = None
    manifest: str | None = None


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """The finished pictures, the indices of outputs that the safety check withheld (`flagged`), seconds by stage."""

    images: tuple[GeneratedImage, ...]
    flagged: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    timings: Mapping[str, float] = dataclass_field(default_factory=dict)

    @classmethod
    def of(
        cls, outputs: Sequence[GeneratedImage | None], warnings: tuple[str, ...], timings: Mapping[str, float]
    ) -> Self:
        """The outcome of a job's outputs in their order, None for each that was flagged as unsafe."""
        return cls(
            images=tuple(image for image in outputs if image is not None),
            flagged=tuple(index for index, image in enumerate(outputs) if image is None),
            warnings=warnings,
            timings=timings,
        )


@dataclass(frozen=True, slots=True)
class QueueEstimate:
    """What a new job can expect: the number of jobs ahead of it, and the seconds until it is done."""

    position: int
    expected_seconds: float


#: Upper bounds, in seconds, of the groups that denoising steps are counted in; one more group is for longer ones.
STEP_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
NO_STEPS: Final = (0,) * (len(STEP_BOUNDS) + 1)


def count_step(counts: tuple[int, ...], seconds: float) -> tuple[int, ...]:
    """`counts` (how many steps took how long, by `STEP_BOUNDS`) with one more step."""
    group = bisect_left(STEP_BOUNDS, seconds)
    return (*counts[:group], counts[group] + 1, *counts[group + 1 :])


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A device's memory in bytes: what is used, by whomever, and what there is. A CPU's is what this process uses."""

    used: int
    total: int


@dataclass(frozen=True, slots=True)
class DeviceSnapshot:
    """What one device is doing now, and its totals; the fields as in `RunnerSnapshot`.

    A device that `is_lost` failed for good, and draws nothing until the server is started anew. `leased_loras` are the
    different LoRAs that it draws with now. `prepared` is the share of its programs that is compiled: at 1 it draws.
    `step_counts` groups steps by how long they took (`STEP_BOUNDS`). `memory` is None where it cannot be read.
    Of a cluster's replica also: its `host`, the work before a new job in `queue_seconds`, the content hashes of the
    LoRAs in its slots, and the lines of its memory plan.
    """

    name: str
    is_lost: bool = False
    prepared: float = 1.0
    active_rows: int = 0
    leased_loras: int = 0
    steps: int = 0
    step_rows: int = 0
    step_seconds: float = 0.0
    step_counts: tuple[int, ...] = NO_STEPS
    memory: DeviceMemory | None = None
    host: str = ""
    queue_seconds: float = 0.0
    resident_loras: tuple[str, ...] = ()
    plan: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunnerSnapshot:
    """What a runner is doing now, and its totals since it started.

    Now: `queued` jobs wait, `active_rows` pictures are between their first and last denoising step. Totals: denoising
    `steps` of a batch, the pictures in them (`step_rows`; over `steps` it is the mean batch size), and `step_seconds`.
    `devices` has the same of each device, where there are any to speak of. `step_counts`: as `DeviceSnapshot` has it.
    `problem` says why nothing can be drawn now.
    """

    queued: int = 0
    active_rows: int = 0
    steps: int = 0
    step_rows: int = 0
    step_seconds: float = 0.0
    step_counts: tuple[int, ...] = NO_STEPS
    devices: tuple[DeviceSnapshot, ...] = ()
    problem: str | None = None
