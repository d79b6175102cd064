from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from schnell.spec.generation import GenerationSpec


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """One LoRA of a job, resolved: the canonical file, its content hash, the name asked for, and its scale."""

    name: str
    sha256: str
    path: Path
    scale: float


@dataclass(frozen=True, slots=True)
class Job:
    """A request that was accepted: its seed is decided and its LoRAs are files on this machine."""

    id: str
    team_id: str
    spec: GenerationSpec
    seed: int
    adapters: tuple[AdapterUse, ...] = ()
    wants_previews: bool = False


#: Where a job is. A worker reports `queued` and `denoise` only; `text` and `decode` come from a job that an engine
#: draws alone, as `schnell generate` does.
Stage = Literal["queued", "text", "denoise", "decode"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands. `position` counts jobs ahead while queued; `step` of `total` counts denoising steps done.

    `previews` holds one small PNG per output, estimated from the latents, when the job asked for previews.
    """

    stage: Stage
    step: int = 0
    total: int = 0
    position: int | None = None
    previews: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """Bytes of a LoRA that have come from outside so far, and of all where that is known."""

    lora: str
    received: int
    total: int | None = None


FetchListener = Callable[[FetchProgress], None]
ProgressListener = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One finished picture: encoded bytes of exactly the asked size, with its receipt inside and beside it."""

    index: int
    seed: int
    data: bytes
    media_type: str
    width: int
    height: int
    receipt: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What a job came to. Flagged outputs (safety) have no image; timings are seconds by stage."""

    images: tuple[GeneratedImage, ...]
    flagged: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueEstimate:
    """What a job would meet if it came now: jobs ahead of it, and the seconds until it would be done."""

    position: int
    expected_seconds: float


@dataclass(frozen=True, slots=True)
class RunnerSnapshot:
    """What a runner is doing now, and its sums since it started.

    `queued` counts jobs that wait, `active_rows` the pictures being denoised. `steps` counts denoising steps,
    `step_rows` the pictures in them (so `step_rows / steps` is the mean batch), `step_seconds` the time they took.
    """

    queued: int = 0
    active_rows: int = 0
    steps: int = 0
    step_rows: int = 0
    step_seconds: float = 0.0
