"""A runner that keeps the files of a job's LoRAs on disk until the job has ended."""

from schnell.generations.running import Runner
from schnell.loras.library import LoraLibrary
from schnell.spec import GenerationSpec, Job, JobOutcome, ProgressListener, QueueEstimate, RunnerSnapshot


class FileHoldingRunner:
    """Runs jobs on `runner`. Jobs wait there too, and a LoRA's file is read only when its turn has come."""

    def __init__(self, runner: Runner, loras: LoraLibrary) -> None:
        self._runner = runner
        self._loras = loras

    async def run(self, job: Job, on_progress: ProgressListener) -> JobOutcome:
        """As `Runner.run`."""
        with self._loras.holding(job.adapters):
            return await self._runner.run(job, on_progress)

    def estimate(self, spec: GenerationSpec, team_id: str) -> QueueEstimate:
        """As `Runner.estimate`."""
        return self._runner.estimate(spec, team_id)

    def snapshot(self) -> RunnerSnapshot:
        """As `Runner.snapshot`."""
        return self._runner.snapshot()

    async def close(self) -> None:
        """As `Runner.close`."""
        await self._runner.close()
