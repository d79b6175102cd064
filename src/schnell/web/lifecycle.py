"""A server's life: put right what a crash left, serve, finish what runs, close."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from fastapi import FastAPI

from schnell.accounts.keys import prepare_first_start
from schnell.database.migration import migrate
from schnell.errors import SchnellError
from schnell.generations.recovery import apply_retention, recover
from schnell.web.services import Services, services_of_app

_log = logging.getLogger(__name__)
_HOUSEKEEPING_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """How a server starts and stops."""

    instance: str = "main"
    bootstrap_key: str | None = None
    retention_days: float | None = None
    drain_seconds: float = 60.0
    #: What the dialects still owe their callers from before the start: told once no record is in between.
    resumes: Sequence[Callable[[Services], Awaitable[None]]] = ()

    @asynccontextmanager
    async def __call__(self, app: FastAPI) -> AsyncIterator[None]:
        """The app's lifespan. `app.state.first_key` is the key to show, once, after the first start."""
        services = services_of_app(app)
        await migrate(services.database)
        async with services.database.write() as connection:
            app.state.first_key = await prepare_first_start(connection, self.bootstrap_key)
        if services.local_assets is not None:
            services.local_assets.sweep_drafts()
        recovery = await recover(services.database, services.store, self.instance)
        if recovery.failed or recovery.removed:
            _log.warning("recovered: %d unfinished records, %d pictures removed", recovery.failed, recovery.removed)
        for resume in self.resumes:
            await resume(services)
        keeping = asyncio.create_task(self._keep_house(app))
        try:
            yield
        finally:
            services.admission.close()
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping
            await services.generations.drain(self.drain_seconds)
            await services.webhooks.close()
            await services.runner.close()
            await services.store.close()
            await services.database.close()

    async def _keep_house(self, app: FastAPI) -> None:
        services = services_of_app(app)
        while True:
            try:
                removed = await apply_retention(services.database, services.store, self.retention_days)
                if removed:
                    _log.info("removed %d old pictures", removed)
            except SchnellError as error:
                _log.warning("old pictures could not be removed: %s", error.message)
            await services.lora_previews.draw_missing()
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
