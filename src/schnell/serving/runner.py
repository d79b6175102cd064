"""Jobs run in this process, beside the event loop."""

import asyncio

from schnell.serving.worker import Worker
from schnell.spec import GenerationSpec, Job, JobOutcome, ProgressListener, QueueEstimate, RunnerSnapshot


class InProcessRunner:
    """The runner of a single machine: one worker thread over one engine."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    @property
    def adapter_slots(self) -> int:
        """How many different LoRAs can be in use at once."""
        return self._worker.adapter_slots

    def warm_up(self) -> None:
        """Draw a picture that nobody sees: it loads the weights and teaches the cost of a step and the previews."""
        spec = GenerationSpec("warming up", safety_checker=False)
        self._worker.submit(Job(id="warm-up", team_id="warm-up", spec=spec, seed=0), lambda _: None).result()

    async def run(self, job: Job, on_progress: ProgressListener) -> JobOutcome:
        """Draw a job's pictures. Cancelling this call takes the job out at the next step.

        Raises:
            GenerationFailedError: the engine could not draw it.
        """
        return await asyncio.wrap_future(self._worker.submit(job, on_progress))

    def estimate(self, spec: GenerationSpec, team_id: str) -> QueueEstimate:
        """What a job would meet if it came now, by what steps have cost so far."""
        lane = self._worker.lane_of(Job(id="estimate", team_id=team_id, spec=spec, seed=0))
        known = self._worker.status.seconds_per_row
        # a size that was never drawn costs about what its share of another size's tokens costs
        per_token = {other: seconds / (other.grid.width * other.grid.height) for other, seconds in known.items()}
        own = known.get(lane, lane.grid.width * lane.grid.height * max(per_token.values(), default=0.0))
        return QueueEstimate(
            position=self._worker.snapshot().queued,
            expected_seconds=self._worker.backlog_seconds() + own * spec.steps * spec.num_outputs,
        )

    def snapshot(self) -> RunnerSnapshot:
        """What the worker is doing."""
        return self._worker.snapshot()

    async def close(self) -> None:
        """Cancel what is left, and end the worker's threads."""
        await asyncio.to_thread(self._worker.stop)
