"""A server's life: recover what a crash left, serve, finish what runs, close."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
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
_RECOVERY_SECONDS: Final = 60.0
#: In the life of a lease, so that some may fail.
_HEARTBEATS: Final = 12


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """How a server starts and stops."""

    bootstrap_key: str | None = None
    retention_days: float | None = None
    drain_seconds: float = 60.0
    #: How the dialects send the webhooks that dead servers left: called once those servers' records have ended.
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
        async with _leased(services):
            await self._recover(services)
            tasks = [
                asyncio.create_task(self._keep_house(app)),
                asyncio.create_task(
                    _repeat("recovery", min(_RECOVERY_SECONDS, services.lease.seconds / 2), self._recover, services)
                ),
            ]
            try:
                yield
            finally:
                services.admission.close()
                await _cancel(*tasks)
                await services.generations.drain(self.drain_seconds)
                await services.webhooks.close()
        await services.runner.close()
        await services.store.close()
        await services.database.close()

    async def _recover(self, services: Services) -> None:
        """End what no living server works on, and send the webhooks that dead servers left."""

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


@asynccontextmanager
async def _leased(services: Services) -> AsyncIterator[None]:
    """Hold the server's lease. Its heartbeats have a task of their own: no slow store and no long drain delays them."""

    async def beat(services: Services) -> None:
        await heartbeat(services.database, services.lease, services.admission)

    await services.lease.start()
    beating = asyncio.create_task(_repeat("heartbeat", services.lease.seconds / _HEARTBEATS, beat, services))
    try:
        yield
    finally:
        await _cancel(beating)
        try:
            await services.lease.end()
        except (SchnellError, SQLAlchemyError, OSError) as error:
            _log.warning("the server's lease is not released, it runs out: %s", type(error).__name__)


async def _repeat(name: str, seconds: float, work: Callable[[Services], Awaitable[None]], services: Services) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await work(services)
        except (SchnellError, SQLAlchemyError, OSError) as error:
            _log.warning("%s failed and is tried again: %s", name, type(error).__name__)


async def _cancel(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
