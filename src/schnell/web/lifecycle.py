"""A server's start and stop: migrate and repair, serve, run hourly work, finish what runs, close."""

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
_HOUR: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """How a server starts and stops; an instance is the app's lifespan.

    `instance` names this server among those that share a database. `retention_days` is how long pictures are kept
    (None: for good). `drain_seconds` is how long a server that stops lets generations go on. `after_recovery` are
    called at the start, once no record is left unfinished by the server before.
    """

    instance: str = "main"
    bootstrap_key: str | None = None
    retention_days: float | None = None
    drain_seconds: float = 60.0
    after_recovery: Sequence[Callable[[Services], Awaitable[None]]] = ()

    @asynccontextmanager
    async def __call__(self, app: FastAPI) -> AsyncIterator[None]:
        """Start, serve while the block runs, and stop.

        Sets `app.state.first_key` to the API key to show once, after the first start (None: there is none to show).
        """
        services = services_of_app(app)
        await self._start(app, services)
        hourly = asyncio.create_task(self._run_hourly(services))
        try:
            yield
        finally:
            # nothing new is accepted from here on; readiness turns to 503
            services.admission.close()
            hourly.cancel()
            with suppress(asyncio.CancelledError):
                await hourly
            await self._stop(services)

    async def _start(self, app: FastAPI, services: Services) -> None:
        await migrate(services.database)
        async with services.database.write() as connection:
            app.state.first_key = await prepare_first_start(connection, self.bootstrap_key)
        if services.local_assets is not None:
            services.local_assets.sweep_drafts()
        recovery = await recover(services.database, services.store, self.instance)
        if recovery.failed or recovery.removed:
            _log.warning("recovered: %d unfinished records, %d pictures removed", recovery.failed, recovery.removed)
        for resume in self.after_recovery:
            await resume(services)

    async def _stop(self, services: Services) -> None:
        # generations that still run need every service below, and the webhooks that report them need the database
        await services.generations.drain(self.drain_seconds)
        await services.webhooks.close()
        await services.runner.close()
        await services.store.close()
        await services.database.close()

    async def _run_hourly(self, services: Services) -> None:
        while True:
            await self._run_retention(services)
            await services.lora_previews.draw_missing()
            await asyncio.sleep(_HOUR)

    async def _run_retention(self, services: Services) -> None:
        try:
            removed = await apply_retention(services.database, services.store, self.retention_days)
            if removed:
                _log.info("removed %d old pictures", removed)
        except SchnellError as error:
            # the store may be away for a while; the next hour tries again
            _log.warning("old pictures could not be removed: %s", error.message)
