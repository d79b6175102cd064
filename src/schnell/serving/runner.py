"""Jobs run in this process, beside the event loop."""

import asyncio
from collections.abc import Mapping

from schnell.serving.worker import LaneKey, Worker
from schnell.spec import (
    DeviceSnapshot,
    GenerationSpec,
    Job,
    JobOutcome,
    ProgressListener,
    QueueEstimate,
    RunnerSnapshot,
)


class InProcessRunner:
    """The runner of a single machine: a worker for each of its devices, all of them over one queue."""

    def __init__(self, first: Worker, *others: Worker) -> None:
        self._workers = (first, *others)
        self._queue = first.queue

    @property
    def adapter_slots(self) -> int:
        """How many different LoRAs can be in use at once."""
        return self._queue.adapter_slots

    def warm_up(self) -> None:
        """Draw a picture on each device that nobody sees: it loads the weights, teaches the cost of a step and the
        previews. Then let each device compile, which this call does not wait for.

        Raises:
            SchnellError: a device could not draw it.
        """
        spec = GenerationSpec("warming up", safety_checker=False)
        job = Job(id="warm-up", team_id="warm-up", spec=spec, seed=0)
        # one after the other: while diffusers loads a network, it changes torch's defaults for the whole process
        for worker in self._workers:
            worker.submit(job, lambda _: None, here=True).result()
        for worker in self._workers:
            if worker.status.prepared < 1:
                # the server starts meanwhile, and tells on /readyz how far this is
                worker.prepare_next()
                worker.submit(job, lambda _: None, here=True)

    async def run(self, job: Job, on_progress: ProgressListener) -> JobOutcome:
        """Draw a job's pictures. Cancelling this call takes the job out at the next step.

        Raises:
            ModelBusyError: there was no memory for it beside others, or no device is left.
            PictureTooLargeError: it needs more memory than the device has.
            GenerationFailedError: the engine could not draw it.
        """
        return await asyncio.wrap_future(self._workers[0].submit(job, on_progress))

    def estimate(self, spec: GenerationSpec, team_id: str) -> QueueEstimate:  # noqa: ARG002 - teams take turns
        """What a job would meet if it came now, by what steps have cost so far."""
        return QueueEstimate(
            position=self._queue.counts().waiting_jobs,
            expected_seconds=self.backlog_seconds() + self.own_seconds(spec),
        )

    def backlog_seconds(self) -> float:
        """How long the steps last that all jobs have still to take, on all devices together."""
        known = self._seconds_per_row()
        backlog = sum(count * known.get(each, 0.0) for each, count in self._queue.remaining_steps().items())
        return backlog / max(1, len(self._alive()))

    def own_seconds(self, spec: GenerationSpec) -> float:
        """How long a job's own steps last; 0 as long as nothing was drawn."""
        lane = self._workers[0].lane_of(Job(id="estimate", team_id="", spec=spec, seed=0))
        known = self._seconds_per_row()
        # a size that was never drawn costs about what its share of another size's tokens costs
        per_token = max((seconds / other.tokens for other, seconds in known.items()), default=0.0)
        return known.get(lane, lane.tokens * per_token) * spec.steps * spec.num_outputs

    def resident_adapters(self) -> tuple[str, ...]:
        """The LoRAs (content hashes) that are in slots of any device, whether somebody draws with them or not."""
        found = (self._queue.held_adapters(index, idle_too=True) for index in range(len(self._workers)))
        return tuple(sorted(frozenset().union(*found)))

    def snapshot(self) -> RunnerSnapshot:
        """What the workers are doing."""
        devices = tuple(self._describe(index, worker) for index, worker in enumerate(self._workers))
        counts = self._queue.counts()
        return RunnerSnapshot(
            queued=counts.waiting_jobs,
            active_rows=counts.denoising_rows,
            steps=sum(each.steps for each in devices),
            step_rows=sum(each.step_rows for each in devices),
            step_seconds=sum(each.step_seconds for each in devices),
            step_counts=tuple(map(sum, zip(*(each.step_counts for each in devices), strict=True))),
            devices=devices,
        )

    async def close(self) -> None:
        """Cancel what is left, and end the workers' threads."""
        for worker in self._workers:
            await asyncio.to_thread(worker.stop)

    def _alive(self) -> list[Worker]:
        return [worker for worker in self._workers if not worker.status.is_lost]

    def _seconds_per_row(self) -> Mapping[LaneKey, float]:
        """What one row's step costs in each lane, on the slowest device that is left."""
        slowest: dict[LaneKey, float] = {}
        for worker in self._alive():
            for lane, seconds in worker.status.seconds_per_row.items():
                slowest[lane] = max(seconds, slowest.get(lane, 0.0))
        return slowest

    def _describe(self, index: int, worker: Worker) -> DeviceSnapshot:
        status = worker.status
        return DeviceSnapshot(
            name=worker.name,
            is_lost=status.is_lost,
            prepared=status.prepared,
            active_rows=self._queue.counts(index).denoising_rows,
            leased_loras=len(self._queue.held_adapters(index)),
            steps=status.steps,
            step_rows=status.step_rows,
            step_seconds=status.step_seconds,
            step_counts=status.step_counts,
            memory=worker.memory(),
        )
