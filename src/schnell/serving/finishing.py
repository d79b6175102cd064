from concurrent.futures import ThreadPoolExecutor

import structlog
from PIL import Image

from schnell.engine.engine import (Engine, outcome_of, warnings_for)
from schnell.errors import SchnellError
from schnell.serving.active_job import ActiveJob

log = structlog.get_logger(__name__)


class Finisher:
    """Resamples, checks and encodes decoded pictures beside the denoising, one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="schnell-finish")

    def submit(self, active: ActiveJob, index: int, picture: Image.Image) -> None:
        """Finish an output of a job; the last one settles the job's future."""
        self._thread.submit(self._finish, active, index, picture)

    def close(self) -> None:
        """Finish what was submitted, then end."""
        self._thread.shutdown(wait=True)

    def _finish(self, active: ActiveJob, index: int, picture: Image.Image) -> None:
        if active.future.done():
            return
        try:
            active.finished[index] = self._engine.finish(active.job, index, picture, active.watch)
        except Exception as error:
            if not isinstance(error, SchnellError):
                log.exception("a picture could not be written", job_id=active.job.id)
            active.settle_with(error)
            return
        if len(active.finished) == active.job.spec.num_outputs:
            finished = [active.finished[i] for i in sorted(active.finished)]
            warnings = warnings_for(active.prompt, self._engine.folder) if active.prompt else ()
            active.settle(outcome_of(finished, warnings, dict(active.watch.seconds)))
