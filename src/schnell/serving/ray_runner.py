"""Jobs drawn on a cluster: the runner of a gateway, which is a driver of Ray.

A job goes to a replica as a stream of messages. A replica that dies leaves its job to another one: the seed is decided,
so the picture is the same, and the gateway's record is charged once.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import Future as ThreadFuture
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Protocol

import structlog
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException

from schnell.errors import GenerationFailedError, ModelBusyError, SchnellError
from schnell.serving.cluster_view import ClusterView
from schnell.serving.replica_messages import Message, ReplicaReport
from schnell.spec import (
    NO_STEPS,
    AdapterUse,
    DeviceSnapshot,
    GenerationSpec,
    Job,
    JobOutcome,
    Progress,
    ProgressListener,
    QueueEstimate,
    RunnerSnapshot,
)

log = structlog.get_logger(__name__)
#: How often a job is begun in all, where replicas die under it.
MOST_TRIES: Final = 3
#: Pauses before another try, in seconds: a node that is gone is found out by the controller meanwhile.
_PAUSES: Final = (0.1, 1.0)
_SLOTS_UNTIL_KNOWN: Final = 8
_LOST: Final = (
    f"the replicas that drew this picture failed, {MOST_TRIES} times in a row; nothing was charged. Try again later"
)
_HEADLESS: Final = "the cluster's head is gone; nothing was charged. Try again in a minute"
_MISSING: Final = "a LoRA's file does not reach the replicas; nothing was charged. Try again"


class Cluster(Protocol):
    """The connection to a cluster's replicas, see `ray_cluster.ClusterConnection`."""

    view: ClusterView

    async def handle(self) -> Any:
        """Ray Serve's handle of the replicas."""
        ...

    @property
    def problem(self) -> str | None:
        """Why nothing can be drawn now; None if it can."""
        ...

    @property
    def start_seconds(self) -> float:
        """How long a replica takes to start, where none is there."""
        ...

    @property
    def gone(self) -> "ThreadFuture[None]":
        """Done once the head was silent for so long that this process has to end, see `ClusterConnection`."""
        ...

    async def close(self) -> None:
        """Leave the cluster."""
        ...


class ShareFiles(Protocol):
    """Puts LoRA files where replicas find them."""

    def __call__(self, adapters: Sequence[AdapterUse], *, again: bool = False) -> Awaitable[Mapping[str, str]]:
        """The hash of each file's bytes, by the LoRA's name in the job; `again`: although it was put there before."""
        ...


class RayRunner:
    """Draws jobs on the replicas of a cluster."""

    def __init__(self, cluster: Cluster, share: ShareFiles) -> None:
        self._cluster = cluster
        self._view = cluster.view
        self._share = share
        self._gone: asyncio.Future[None] | None = None

    @property
    def adapter_slots(self) -> int:
        """How many different LoRAs can be in use at once: on the replica that has most slots."""
        return max((each.adapter_slots for each in self._reports().values()), default=_SLOTS_UNTIL_KNOWN)

    async def run(self, job: Job, on_progress: ProgressListener) -> JobOutcome:
        """Draw a job's pictures; where its replica dies, on another one. Cancelling this call takes it out there.

        Raises:
            ModelBusyError: the replicas failed under it, time and again.
            SchnellError: it could not be drawn, as in `InProcessRunner.run`.
        """
        contents = await self._share(job.adapters)
        is_shared_anew = False
        attempt = 1
        while True:
            try:
                last = await self._draw(job, contents, _numbered(on_progress, attempt))
            except RayActorError as error:
                if attempt == MOST_TRIES:
                    raise ModelBusyError(_LOST, 30.0) from error
                await asyncio.sleep(_PAUSES[attempt - 1])
                attempt += 1
                # whoever follows the job sees that it waits again
                on_progress(Progress("queued", 0, job.spec.steps, attempt=attempt))
                continue
            if last.missing is None:
                return _end_of(last)
            if is_shared_anew:
                raise GenerationFailedError(_MISSING)
            contents, is_shared_anew = await self._share(job.adapters, again=True), True

    async def _draw(self, job: Job, contents: Mapping[str, str], on_progress: ProgressListener) -> Message:
        """One try: the replica's last message.

        Raises:
            RayActorError: the replica died, or cannot be reached.
            ModelBusyError, GenerationFailedError: the cluster does not take the job, or its head is gone.
        """
        gone = self._gone_in_this_loop()
        handle = await self._cluster.handle()
        stream = handle.options(stream=True).draw.remote(job, contents)
        is_over, message = False, Message()
        reading = asyncio.ensure_future(_read(stream, on_progress))
        either: set[asyncio.Future[Any]] = {reading, gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                # Ray would wait for ever, and end this process before its records are closed
                is_over = True
                raise ModelBusyError(_HEADLESS, 60.0)
            message = reading.result()
            is_over = True
        except RayActorError as error:
            self._note_death(job, error)
            is_over = True
            raise
        except RayServeException as error:
            raise ModelBusyError("the cluster takes no pictures now; nothing was charged. Try again", 5.0) from error
        except RayError as error:
            log.exception("a replica failed", job_id=job.id)
            raise GenerationFailedError("the picture could not be drawn; nothing was charged") from error
        finally:
            reading.cancel()
            if not is_over:
                # a stream that never began raises here what it has raised before, and would hide what we make of it
                with suppress(RayError, RayServeException):
                    stream.cancel()
            replica = self._view.returned(job)
        if replica and message.report is not None:
            self._view.report(replica, message.report)
        return message

    def _gone_in_this_loop(self) -> "asyncio.Future[None]":
        """One future for all jobs: the thread's keeps a reference to each that was made of it."""
        if self._gone is None or self._gone.get_loop() is not asyncio.get_running_loop():
            self._gone = asyncio.wrap_future(self._cluster.gone)
        return self._gone

    def _note_death(self, job: Job, error: RayActorError) -> None:
        replica = self._view.returned(job)
        log.warning("a replica is gone; its job is drawn elsewhere", job_id=job.id, replica=replica, error=str(error))
        if replica:
            self._view.suspect(replica)

    def estimate(self, spec: GenerationSpec, team_id: str) -> QueueEstimate:  # noqa: ARG002 - replicas let teams take turns
        """What a job would meet if it came now, a replica's start included where none is there."""
        waiting = self._view.least_seconds()
        before = self._cluster.start_seconds if waiting is None else waiting
        queued = sum(each.queued for each in self._reports().values())
        return QueueEstimate(queued, before + self._view.seconds_of(spec))

    def snapshot(self) -> RunnerSnapshot:
        """What the replicas were doing when they last told."""
        reports = self._reports()
        devices = tuple(device for name, report in reports.items() for device in _devices_of(name, report))
        return RunnerSnapshot(
            queued=sum(each.queued for each in reports.values()),
            active_rows=sum(each.active_rows for each in devices),
            steps=sum(each.steps for each in devices),
            step_rows=sum(each.step_rows for each in devices),
            step_seconds=sum(each.step_seconds for each in devices),
            step_counts=tuple(map(sum, zip(NO_STEPS, *(each.step_counts for each in devices), strict=True))),
            devices=devices,
            problem=self._cluster.problem,
        )

    async def close(self) -> None:
        """Leave the cluster; what other gateways have there goes on."""
        await self._cluster.close()

    def _reports(self) -> Mapping[str, ReplicaReport]:
        return self._view.reports()


async def _read(stream: Any, on_progress: ProgressListener) -> Message:
    """The last message of a stream; progress is told on the way."""
    message = Message()
    async for message in stream:
        if message.progress is not None:
            on_progress(message.progress)
    return message


def _numbered(listener: ProgressListener, attempt: int) -> ProgressListener:
    """The listener, told which try it is from the second one on."""
    if attempt == 1:
        return listener
    return lambda progress: listener(replace(progress, attempt=attempt))


def _end_of(last: Message) -> JobOutcome:
    if last.error is not None:
        raise _as_ours(last.error)
    if last.outcome is None:
        raise GenerationFailedError("the replica gave no picture; nothing was charged. Try again")
    return last.outcome


def _as_ours(error: Exception) -> SchnellError:
    return error if isinstance(error, SchnellError) else GenerationFailedError("the picture could not be drawn")


def _devices_of(name: str, report: ReplicaReport) -> list[DeviceSnapshot]:
    return [
        replace(
            each,
            name=f"{name}/{each.name}",
            host=report.host,
            queue_seconds=report.queue_seconds,
            resident_loras=report.resident,
            plan=report.plan,
        )
        for each in report.devices
    ]
