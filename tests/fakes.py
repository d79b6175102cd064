"""One fake for each Protocol."""

import asyncio
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from schnell.spec import (
    DeviceSnapshot,
    GeneratedImage,
    GenerationSpec,
    Job,
    JobOutcome,
    Progress,
    ProgressListener,
    QueueEstimate,
    RunnerSnapshot,
    output_seed,
)

_MEDIA_TYPES = {"webp": "image/webp", "jpeg": "image/jpeg", "png": "image/png"}


@dataclass
class FakeRunner:
    """Paints a real picture of the asked size at once: a colour from the seed, and the prompt's first letters.

    `step_seconds` slows it down, `failure` is raised in the middle, `flagged` outputs get no picture.
    `gate`, when given, is waited for before the first step.
    """

    step_seconds: float = 0.0
    failure: Exception | None = None
    flagged: Sequence[int] = ()
    gate: asyncio.Event | None = None
    jobs: list[Job] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    closed: bool = False
    devices: tuple[DeviceSnapshot, ...] = ()
    adapter_slots: int = 16

    async def run(self, job: Job, on_progress: ProgressListener) -> JobOutcome:
        self.jobs.append(job)
        try:
            return await self._draw(job, on_progress)
        except asyncio.CancelledError:
            self.cancelled.append(job.id)
            raise

    def estimate(self, spec: GenerationSpec, team_id: str) -> QueueEstimate:  # noqa: ARG002 - the Protocol's form
        waiting = len(self.jobs) - len(self.finished) - len(self.cancelled)
        return QueueEstimate(waiting, self.step_seconds * spec.steps * (waiting + 1))

    def snapshot(self) -> RunnerSnapshot:
        return RunnerSnapshot(steps=len(self.finished), step_rows=len(self.finished), devices=self.devices)

    async def close(self) -> None:
        self.closed = True

    async def _draw(self, job: Job, on_progress: ProgressListener) -> JobOutcome:
        started = time.perf_counter()
        steps = job.spec.steps
        on_progress(Progress("queued", 0, steps, position=0))
        if self.gate is not None:
            await self.gate.wait()
        for step in range(1, steps + 1):
            await asyncio.sleep(self.step_seconds)
            # as the worker does it: after the last step the picture itself is on its way, without a preview
            on_progress(Progress("denoise", step, steps, previews=_previews(job) if step < steps else ()))
        if self.failure is not None:
            raise self.failure
        shown = [index for index in range(job.spec.num_outputs) if index not in self.flagged]
        images = tuple(paint(job, index) for index in shown)
        self.finished.append(job.id)
        return JobOutcome(images, tuple(self.flagged), timings={"denoise": time.perf_counter() - started})


def _previews(job: Job) -> tuple[bytes, ...]:
    """A small picture for each output, when the job asked for them."""
    if not job.wants_previews:
        return ()
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 120, 80)).save(file, "PNG")
    return (file.getvalue(),) * job.spec.num_outputs


def paint(job: Job, index: int) -> GeneratedImage:
    """A picture that its job decides: same job, same bytes."""
    seed = output_seed(job.seed, index)
    picture = Image.new(
        "RGB", (job.spec.size.width, job.spec.size.height), ((seed * 97) % 256, (seed * 57) % 256, (seed * 17) % 256)
    )
    ImageDraw.Draw(picture).text((16, 16), job.spec.prompt[:20].encode("ascii", "replace").decode())
    file = io.BytesIO()
    picture.save(file, job.spec.output_format, quality=job.spec.output_quality)
    return GeneratedImage(
        index=index,
        seed=seed,
        data=file.getvalue(),
        media_type=_MEDIA_TYPES[job.spec.output_format],
        width=job.spec.size.width,
        height=job.spec.size.height,
        receipt={"seed": seed, "prompt": job.spec.prompt, "model": {"name": "paint"}},
    )
