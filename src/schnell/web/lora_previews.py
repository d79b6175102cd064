import logging
from typing import Final

from schnell.errors import NotFoundError, SchnellError
from schnell.loras.entries import LibraryLora
from schnell.spec import GenerationSpec, Job, LoraRef, Size
from schnell.web.services import Services

_log = logging.getLogger(__name__)
_PROMPT: Final = "a red apple"
_SIZE: Final = Size(512, 512)
_MOST_TRIGGERS: Final = 2


async def draw_missing_previews(services: Services) -> None:
    """Draw the previews of LoRAs that were added where nothing draws, as on the command line."""
    for lora in await services.loras.added():
        try:
            await services.loras.find_preview(lora.id, lora.owner)
        except NotFoundError:
            await draw_preview(services, lora, lora.owner)


async def draw_preview(services: Services, lora: LibraryLora, team_id: str) -> None:
    """Draw one small picture with a LoRA and keep it as its preview. Costs nothing; a failure is only logged."""
    prompt = ", ".join((_PROMPT, *lora.trigger_words[:_MOST_TRIGGERS]))
    try:
        adapters = await services.loras.resolve([LoraRef(lora.id, scale=1.0)], team_id)
        job = Job(f"preview-{lora.id}", team_id, GenerationSpec(prompt, _SIZE, seed=0), seed=0, adapters=adapters)
        outcome = await services.runner.run(job, lambda _: None)
    except SchnellError as error:
        _log.warning("no preview of LoRA %s: %s", lora.name, error.message)
        return
    if outcome.images:
        await services.loras.keep_preview(lora, outcome.images[0].data)
