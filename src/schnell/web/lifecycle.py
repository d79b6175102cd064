"""A server's life: put right what a crash left, serve, finish what runs, close."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from schnell.accounts.keys import prepare_first_start
from schnell.database.migration import migrate, take_turn
from schnell.errors import SchnellError
from schnell.generations.recovery import apply_retention, heartbeat, reconcile
from schnell.generations.webhooks import Subscription
from schnell.web.services import Services, services_of_app

_log = logging.getLogger(__name__)
_HOUSEKEEPING_SECONDS: Final = 3600.0
#: In the life of a lease, so that some may fail; by default every ten seconds, and every minute.
_HEARTBEATS: Final = 12
_HEARTBEATS_A_LOOK: Final = 6


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """How a server starts and stops."""

    bootstrap_key: str | None = None
    retention_days: float | None = None
    drain_seconds: float = 60.0
    #: How the dialects tell their callers what dead servers still owe them: called once those records have ended.
    resumes: Sequence[Callable[[Services, Sequence[Subscription]], Awaitable[None]]] = ()

    @asynccontextmanager
    async def __call__(self, app: FastAPI) -> AsyncIterator[None]:
        """The app's lifespan. `app.state.first_key` is the key to show, once, after the first start."""
        services = services_of_app(app)
        await migrate(services.database)
        async with services.database.write() as connection:
            # or two servers that start at once on a new database would both make the first team
            await take_turn(connection)
            app.state.first_key = await prepare_first_start(connection, self.bootstrap_key)
        await services.lease.start()
        await self._put_right(services)
        keeping = asyncio.create_task(self._keep_house(app))
        living = asyncio.create_task(self._stay_alive(services))
        try:
            yield
        finally:
            services.admission.close()
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping
            await services.generations.drain(self.drain_seconds)
            await services.webhooks.close()
            living.cancel()
            with suppress(asyncio.CancelledError):
                await living
            await self._end_lease(services)
            await services.runner.close()
            await services.store.close()
            await services.database.close()

    async def _put_right(self, services: Services) -> None:
        """End what no living server works on, and go on with what it owed."""

        def is_under_way(record_id: str) -> bool:
            return services.admission.find(record_id) is not None

        if services.local_assets is not None:
            async with services.database.read() as connection:
                living = await services.lease.list_live(connection)
            await asyncio.to_thread(services.local_assets.sweep_drafts, living)
        recovery = await reconcile(services.database, services.store, services.lease, is_under_way)
        for resume in self.resumes:
            await resume(services, recovery.adopted)
        await services.loras.remove_unwanted()

    async def _stay_alive(self, services: Services) -> None:
        """Twelve heartbeats in the life of a lease, and every sixth time a look at what dead servers have left."""
        pause = services.lease.seconds / _HEARTBEATS
        for count in itertools.count(1):
            await asyncio.sleep(pause)
            try:
                await heartbeat(services.database, services.lease, services.admission)
                if count % _HEARTBEATS_A_LOOK == 0:
                    await self._put_right(services)
            except (SchnellError, SQLAlchemyError, OSError) as error:
                _log.warning("the server's lease could not be renewed: %s", type(error).__name__)

    async def _end_lease(self, services: Services) -> None:
        try:
            await services.lease.end()
        except (SQLAlchemyError, OSError) as error:
            _log.warning("the server's lease is not given back, it runs out: %s", type(error).__name__)

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
