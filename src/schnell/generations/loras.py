"""What generations do for LoRAs: files stay while jobs need them, and each LoRA gets a small picture as its preview."""

import asyncio
import logging
from contextlib import suppress
from typing import Final

from schnell.clock import wait_for_quiet
from schnell.database.tables import new_id
from schnell.errors import SchnellError
from schnell.generations.running import Runner
from schnell.loras.library import LoraLibrary
from schnell.loras.repository import LibraryLora
from schnell.spec import GenerationSpec, Job, JobOutcome, LoraRef, ProgressListener, QueueEstimate, RunnerSnapshot, Size

_log = logging.getLogger(__name__)
#: What previews show: the library's own words. A picture that costs nothing must not be one of somebody's own words.
_SUBJECTS: Final = ("a red apple", "a green frog", "a rocket", "a teapot", "a cat", "a tree", "a house", "a bicycle")
_SIZE: Final = Size(512, 512)
#: How often a preview that waits looks whether there is paying work, in seconds, and how many looks have to find none:
#: between the pictures of one client that asks for the next at once, nothing is drawn for some milliseconds.
_PATIENCE: Final = 0.2
_QUIET_LOOKS: Final = 2
#: Seconds after which a preview is drawn on a server that is never quiet.
_LONGEST_WAIT: Final = 60.0
#: How many LoRAs wait for their preview at most; the hourly round finds the others.
_MOST_WAITING: Final = 1000


class LoraPreviews:
    """Draws previews on the runner that draws everything else, one at a time, when nobody waits for a picture.

    They cost nothing, so they come after all that does, and outside of the limits of the queue. Each LoRA gets one. A
    preview has no record: one that is lost is drawn again by `draw_missing`. A failure is only logged.
    """

    def __init__(self, runner: Runner, loras: LoraLibrary) -> None:
        self._runner = runner
        self._loras = loras
        self._waiting: dict[str, LibraryLora] = {}
        self._task: asyncio.Task[None] | None = None

    async def draw_missing(self) -> None:
        """Ask for the previews of LoRAs that were added where nothing draws, as on the command line."""
        found = await self._loras.added()
        drawn = await self._loras.list_previewed(found)
        for lora in found:
            if lora.id not in drawn:
                self.ask_for(lora)

    def ask_for(self, lora: LibraryLora) -> None:
        """Draw a LoRA's preview as soon as nothing else is to be drawn."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting[lora.id] = lora
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._draw_all())

    async def close(self) -> None:
        """Draw no more. What waits is found again by the next start."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _draw_all(self) -> None:
        while self._waiting:
            await self._wait_for_quiet()
            await self._draw(self._waiting.pop(next(iter(self._waiting))))

    async def _wait_for_quiet(self) -> None:
        steps = self._runner.snapshot().steps

        def is_busy() -> bool:
            # the queue is a thread's, and tells nobody that it is empty
            nonlocal steps
            now, before = self._runner.snapshot(), steps
            steps = now.steps
            return now.queued > 0 or now.active_rows > 0 or now.steps != before

        await wait_for_quiet(is_busy, _PATIENCE, _QUIET_LOOKS, _LONGEST_WAIT)

    async def _draw(self, lora: LibraryLora) -> None:
        try:
            adapters = await self._loras.resolve([LoraRef(lora.id, scale=1.0)], lora.owner)
            # two LoRAs of the same content get two pictures: whoever adds a file learns nothing of who else has
            number = int(lora.id.replace("-", "")[:8], 16)
            spec = GenerationSpec(_SUBJECTS[number % len(_SUBJECTS)], _SIZE, seed=number)
            # an id of its own: a LoRA may be drawn again after its preview was lost
            job = Job(f"preview-{new_id()}", lora.owner, spec, seed=number, adapters=adapters)
            outcome = await self._runner.run(job, lambda _: None)
            if outcome.images:
                await self._loras.keep_preview(lora, outcome.images[0].data)
        except SchnellError as error:
            _log.info("no preview of LoRA %s: %s", lora.id, error.message)
        except Exception:  # noqa: BLE001 - a preview that fails must not end the others
            _log.exception("no preview of LoRA %s", lora.id)


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
