"""What generations do for LoRAs: files stay while jobs need them, and each LoRA gets a small picture as its preview."""

import logging
from typing import Final

from schnell.database.tables import new_id
from schnell.errors import NotFoundError, SchnellError
from schnell.generations.running import Runner
from schnell.loras.library import LoraLibrary
from schnell.loras.repository import LibraryLora
from schnell.spec import GenerationSpec, Job, JobOutcome, LoraRef, ProgressListener, QueueEstimate, RunnerSnapshot, Size

_log = logging.getLogger(__name__)
_PROMPT: Final = "a red apple"
_SIZE: Final = Size(512, 512)
_MOST_TRIGGERS: Final = 2


class LoraPreviews:
    """Draws previews on the runner that draws everything else. They cost nothing; a failure is only logged.

    A preview has no record: one that is lost is drawn again by `draw_missing`.
    """

    def __init__(self, runner: Runner, loras: LoraLibrary) -> None:
        self._runner = runner
        self._loras = loras

    async def draw_missing(self) -> None:
        """Draw the previews of LoRAs that were added where nothing draws, as on the command line."""
        for lora in await self._loras.added():
            try:
                await self._loras.find_preview(lora.id, lora.owner)
            except NotFoundError:
                await self.draw(lora, lora.owner)

    async def draw(self, lora: LibraryLora, team_id: str) -> None:
        """Draw one small picture with a LoRA and keep it as its preview. Raises nothing."""
        prompt = ", ".join((_PROMPT, *lora.trigger_words[:_MOST_TRIGGERS]))
        try:
            adapters = await self._loras.resolve([LoraRef(lora.id, scale=1.0)], team_id)
            # a LoRA may be drawn twice at once (just added, and found without a preview): ids must differ all the same
            job_id = f"preview-{new_id()}"
            job = Job(job_id, team_id, GenerationSpec(prompt, _SIZE, seed=0), seed=0, adapters=adapters)
            outcome = await self._runner.run(job, lambda _: None)
            if outcome.images:
                await self._loras.keep_preview(lora, outcome.images[0].data)
        except SchnellError as error:
            _log.warning("no preview of LoRA %s: %s", lora.name, error.message)
        except Exception:  # noqa: BLE001 - a preview that fails must end neither a request nor the other previews
            _log.exception("no preview of LoRA %s", lora.name)


class FileHoldingRunner:
    """Runs jobs on `runner`. Jobs wait there too, and a LoRA's file is read only when its turn has come."""

    def __init__(self, runner: Runner, loras: LoraLibrary) -> None:
        self._runner = runner
        self._loras = loras

    @property
    def adapter_slots(self) -> int:
        """As `Runner.adapter_slots`."""
        return self._runner.adapter_slots

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
