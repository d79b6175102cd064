"""Gauges of what lies beyond the process, for the metrics: rows of the database, and the disk.

They are read before a scrape is answered, at most every few seconds, and are left out while the database is away: an
old figure would hide an outage.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Column, Select, func, select

from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.session import Database
from schnell.database.tables import images, lora_downloads, loras, webhooks
from schnell.errors import DatabaseUnavailableError

#: Counting a million pictures takes SQLite a good part of a second, in a thread of its own.
_FRESH_SECONDS: Final = 15.0
_PATIENCE: Final = 2.0


@dataclass(frozen=True, slots=True)
class DatabaseFigures:
    """Webhooks that are still to be delivered, and how late the oldest is; what LoRAs and pictures take, in bytes."""

    webhooks: int = 0
    webhooks_late_seconds: float = 0.0
    library_loras: int = 0
    library_bytes: int = 0
    fetched_loras: int = 0
    fetched_bytes: int = 0
    pictures: int = 0
    picture_bytes: int = 0


class Gauges(Collector):
    """Collects these gauges. `lookups` gives how many LoRAs were found in the cache, and how many were fetched."""

    def __init__(
        self, database: Database, data_dir: Path, *, cache_bytes: int, lookups: Callable[[], tuple[int, int]]
    ) -> None:
        self._database = database
        self._data_dir = data_dir
        self._cache_bytes = cache_bytes
        self._lookups = lookups
        self._figures: DatabaseFigures | None = None
        self._read_at = float("-inf")

    async def refresh(self) -> None:
        """Read the database, unless it was read a moment ago."""
        if time.monotonic() - self._read_at < _FRESH_SECONDS:
            return
        try:
            async with asyncio.timeout(_PATIENCE), self._database.scan() as connection:
                self._figures = await read_figures(connection)
            self._read_at = time.monotonic()
        except (DatabaseUnavailableError, TimeoutError):
            self._figures = None

    def collect(self) -> Iterator[Metric]:
        """The gauges as they were read, and the disk's now."""
        disk = shutil.disk_usage(self._data_dir)
        yield GaugeMetricFamily("schnell_disk_free_bytes", "Room left on the data folder's disk", value=disk.free)
        yield GaugeMetricFamily("schnell_disk_bytes", "The size of the data folder's disk", value=disk.total)
        yield GaugeMetricFamily("schnell_lora_cache_limit_bytes", "Room for fetched LoRAs", value=self._cache_bytes)
        found, fetched = self._lookups()
        lookups = CounterMetricFamily("schnell_lora_lookups", "References to remote LoRAs", labels=["outcome"])
        lookups.add_metric(["cached"], found)
        lookups.add_metric(["fetched"], fetched)
        yield lookups
        if self._figures is not None:
            yield from _of_database(self._figures)


async def read_figures(connection: Connection) -> DatabaseFigures:
    """The figures at this moment. Raises SQLAlchemyError."""
    waiting = (await connection.execute(select(func.count(), func.min(webhooks.c.due_at)).select_from(webhooks))).one()
    library = (await connection.execute(_sum(loras.c.bytes))).one()
    fetched = (await connection.execute(_sum(lora_downloads.c.bytes, by=lora_downloads.c.sha256))).one()
    stored = _sum(images.c.bytes).where(images.c.state == "STORED")
    pictures = (await connection.execute(stored)).one()
    late = (now() - waiting[1]).total_seconds() if waiting[1] else 0.0
    return DatabaseFigures(waiting[0], max(0.0, late), *map(int, (*library, *fetched, *pictures)))


def _sum(size: Column[Any], *, by: Column[Any] | None = None) -> Select[Any]:
    counted = func.count() if by is None else func.count(by.distinct())
    return select(counted, func.coalesce(func.sum(size), 0)).select_from(size.table)


def _of_database(figures: DatabaseFigures) -> Iterator[Metric]:
    yield GaugeMetricFamily("schnell_webhooks_pending", "Webhooks still to be delivered", value=figures.webhooks)
    yield GaugeMetricFamily(
        "schnell_webhooks_late_seconds", "How long the oldest of them is overdue", value=figures.webhooks_late_seconds
    )
    files = GaugeMetricFamily("schnell_lora_files", "LoRAs on disk", labels=["kind"])
    sizes = GaugeMetricFamily("schnell_lora_bytes", "What LoRAs on disk take", labels=["kind"])
    for kind, count, size in (
        ("library", figures.library_loras, figures.library_bytes),
        ("fetched", figures.fetched_loras, figures.fetched_bytes),
    ):
        files.add_metric([kind], count)
        sizes.add_metric([kind], size)
    yield from (files, sizes)
    yield GaugeMetricFamily("schnell_stored_images", "Stored pictures", value=figures.pictures)
    yield GaugeMetricFamily("schnell_stored_image_bytes", "What stored pictures take", value=figures.picture_bytes)
