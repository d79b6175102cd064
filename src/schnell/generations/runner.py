from typing import Protocol

from schnell.spec import (GenerationSpec, Job, JobOutcome, Outlook, ProgressListener, RunnerSnapshot)


class Runner(Protocol):
    """Draws pictures: in this process, or on a cluster."""

    async def run(self, job: Job, on_progress: ProgressListener) -> JobOutcome:
        """Draw `job`. Cancelling the task that waits here cancels the job at its next step.

        `on_progress` may be called from any thread.

        Raises:
            SchnellError: the job could not be drawn.
        """
        ...

    def outlook(self, spec: GenerationSpec, team_id: str) -> Outlook:
        """What `spec` would meet if it came now."""
        ...

    def snapshot(self) -> RunnerSnapshot:
        """What is going on, for the metrics."""
        ...

    async def close(self) -> None:
        """Stop, and let go of the model."""
        ...
