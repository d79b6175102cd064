"""One engine replica on a cluster: a machine's worker, its queue and its files, behind a stream of messages.

Ray Serve makes it in a process of its own, on one GPU or on CPUs. What a request is on one machine, it is here: the
same queue, the same worker. A gateway sends a job and reads messages until the last one.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import structlog

from schnell.errors import GenerationFailedError, SchnellError
from schnell.serving.replica_files import FileMissingError, ReplicaFiles
from schnell.serving.replica_messages import REFERENCE, Message, ReplicaReport
from schnell.serving.runner import InProcessRunner
from schnell.spec import Job, JobOutcome, Progress

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReplicaParts:
    """What a replica is made of: built in its own process, by the function that the deployment names."""

    runner: InProcessRunner
    files: ReplicaFiles
    plan: tuple[str, ...] = ()


@dataclass(slots=True)
class _Watch:
    """When the engine last took a step."""

    steps: int = 0
    since: float = field(default_factory=time.monotonic)


class EngineReplica:
    """Draws jobs that gateways send, any number at once: its own queue decides which steps together."""

    def __init__(self, build: Callable[[], ReplicaParts], target_seconds: float, stuck_seconds: float) -> None:
        # in a thread of its own: Ray calls this on an event loop that runs, and parts that are built run coroutines of
        # their own (the key that signs is read from the database)
        with ThreadPoolExecutor(1, "schnell-build") as builder:
            self._parts = builder.submit(build).result()
        self._target_seconds = target_seconds
        self._stuck_seconds = stuck_seconds
        self._watch = _Watch()
        self._host = socket.gethostname()

    async def draw(self, job: Job, contents: Mapping[str, str]) -> AsyncGenerator[Message, None]:
        """Draw a job; `contents` are the hashes of its LoRA files' bytes, by the names that `job` has for them.

        Closing the stream, or cancelling its request, takes the job out at its next step.
        """
        with self._parts.files.holding(contents.values()):
            try:
                placed = await self._parts.files.place(job, contents)
            except FileMissingError as error:
                yield Message(missing=str(error.args[0]), report=self.report())
            except SchnellError as error:
                yield Message(error=error, report=self.report())
            else:
                async with contextlib.aclosing(self._draw(placed)) as messages:
                    async for message in messages:
                        yield message

    async def _draw(self, job: Job) -> AsyncGenerator[Message, None]:
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Progress | None] = asyncio.Queue()

        def listen(progress: Progress) -> None:
            loop.call_soon_threadsafe(told.put_nowait, progress)

        drawing = asyncio.ensure_future(self._parts.runner.run(job, listen))
        drawing.add_done_callback(lambda _: loop.call_soon(told.put_nowait, None))
        try:
            while (progress := await told.get()) is not None:
                yield Message(progress=progress)
            yield await self._end_of(drawing)
        finally:
            drawing.cancel()

    async def _end_of(self, drawing: "asyncio.Future[JobOutcome]") -> Message:
        try:
            return Message(outcome=await drawing, report=self.report())
        except SchnellError as error:
            return Message(error=error, report=self.report())
        except Exception:
            # the gateway could not tell from its text what it was: the replica's log has it
            log.exception("a job failed")
            hidden = "the picture could not be drawn; nothing was charged"
            return Message(error=GenerationFailedError(hidden), report=self.report())

    def report(self) -> ReplicaReport:
        """What this replica is doing, and what a job would meet."""
        runner = self._parts.runner
        now = runner.snapshot()
        backlog = runner.backlog_seconds()
        return ReplicaReport(
            queue_seconds=backlog,
            reference_seconds=runner.own_seconds(REFERENCE),
            queued=now.queued,
            resident=runner.resident_adapters(),
            adapter_slots=runner.adapter_slots,
            devices=now.devices,
            plan=self._parts.plan,
            host=self._host,
        )

    def record_routing_stats(self) -> dict[str, Any]:
        """Ray asks every second, and gives it to the routers of all gateways."""
        return {"report": self.report()}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray asks for what `queue_seconds_policy` decides by."""
        runner = self._parts.runner
        now = runner.snapshot()
        jobs = float(now.queued + now.active_rows)
        return {"queue_seconds": runner.backlog_seconds(), "target_seconds": self._target_seconds, "jobs": jobs}

    def check_health(self) -> None:
        """Ray replaces a replica that raises here, three times in a row by default.

        One whose engine has work and took no step for a long time ends its process at once. Ray would let it draw what
        it has first, which a device that hangs never does; gateways find its death out, and draw its jobs elsewhere.

        Raises:
            RuntimeError: no device is left.
        """
        now = self._parts.runner.snapshot()
        if now.devices and all(device.is_lost for device in now.devices):
            raise RuntimeError("every device of this replica has failed")
        idle = not now.queued and not now.active_rows
        if idle or now.steps != self._watch.steps or any(device.prepared < 1 for device in now.devices):
            self._watch = _Watch(now.steps)
        elif time.monotonic() - self._watch.since > self._stuck_seconds:
            log.critical(
                "no step although jobs wait: the device hangs, and this replica ends", seconds=self._stuck_seconds
            )
            os._exit(1)

    async def __del__(self) -> None:
        """Ray calls it once the replica is drained."""
        await self._parts.runner.close()
