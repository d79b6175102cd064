"""LoRAs from outside: found as they were fetched before, or fetched, converted and kept while there is room."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schnell.adapters import ConvertedAdapter
from schnell.database.session import Database
from schnell.errors import AdapterError, LoraDownloadError
from schnell.loras.files import AdapterFiles
from schnell.loras.references import Reference
from schnell.loras.repository import (
    find_download,
    forget_downloads,
    is_in_library,
    keep_download,
    list_downloads,
    touch_download,
    wants_touch,
)
from schnell.loras.sources import FoundSource, SourceSites, find_source
from schnell.loras.tokens import SourceTokens
from schnell.outbound.downloads import Downloader, DownloadListener

_MOST_REFUSALS: Final = 1000
_REFUSAL_SECONDS: Final = 300
Fetched = tuple[ConvertedAdapter, FoundSource]


class _Audience:
    """Everyone who is told how far a download is; who comes later hears at once how far it is by then."""

    def __init__(self) -> None:
        self._listeners: list[DownloadListener] = []
        self._latest: tuple[int, int | None] | None = None

    def add(self, listener: DownloadListener) -> None:
        self._listeners.append(listener)
        if self._latest is not None:
            listener(*self._latest)

    def tell(self, received: int, total: int | None) -> None:
        self._latest = (received, total)
        for listener in self._listeners:
            listener(received, total)


@dataclass(frozen=True, slots=True)
class _Fetch:
    """A download under way, and who is told how far it is."""

    task: asyncio.Task[Fetched]
    audience: _Audience


class OutsideLoras:
    """What references to places outside lead to.

    A team with tokens of its own sees other files at a place than everybody: what was fetched for it is found by it
    alone. `cache_bytes` is the room for files that are in no library.
    """

    def __init__(  # noqa: PLR0913 - it is built in one place, from one part each
        self,
        database: Database,
        files: AdapterFiles,
        downloader: Downloader,
        *,
        sites: SourceSites | None = None,
        tokens: SourceTokens | None = None,
        cache_bytes: int = 20 * 2**30,
    ) -> None:
        self._database = database
        self._files = files
        self._downloader = downloader
        self._sites = sites or SourceSites()
        self._tokens = tokens
        self._cache_bytes = cache_bytes
        self._under_way: dict[str, _Fetch] = {}
        self._refused: dict[str, tuple[float, str]] = {}

    async def find(
        self, reference: Reference, team_id: str, on_progress: DownloadListener | None = None
    ) -> tuple[str, Path]:
        """Hash and path of the file behind a reference, fetched if it is not here.

        Raises:
            AdapterError: the file is not understood, or does not fit the model.
            LoraSourceError, LoraDownloadError: it may not, or could not, be fetched.
        """
        sites, key = await self._see(reference, team_id)
        async with self._database.read() as connection:
            known = await find_download(connection, key)
        if known is not None and (path := await self._files.find(known.sha256)):
            if wants_touch(known):
                async with self._database.write() as connection:
                    await touch_download(connection, key)
            return known.sha256, path
        until, message = self._refused.get(key, (0.0, ""))
        if time.monotonic() < until:
            raise AdapterError(message)
        converted, _ = await self._share(reference, sites, key, on_progress)
        return converted.sha256, converted.path

    async def fetch(self, reference: Reference, team_id: str, on_progress: DownloadListener | None = None) -> Fetched:
        """Fetch, convert and note a reference anew. Raises as `find`."""
        sites, key = await self._see(reference, team_id)
        return await self._share(reference, sites, key, on_progress)

    async def _see(self, reference: Reference, team_id: str) -> tuple[SourceSites, str]:
        """The sites as this team sees them, and the text under which what it fetches there is noted."""
        own = await self._tokens.of_team(team_id) if self._tokens and team_id else {}
        whose = f"{team_id} " if own else ""
        return self._sites.with_tokens(own), f"{whose}{reference!r}"[:600]

    async def _share(
        self, reference: Reference, sites: SourceSites, key: str, on_progress: DownloadListener | None
    ) -> Fetched:
        """Those who ask for one thing meanwhile share the work, and are all told how far it is."""
        fetch = self._under_way.get(key)
        if fetch is None:
            audience = _Audience()
            fetch = _Fetch(asyncio.create_task(self._fetch(reference, sites, key, audience.tell)), audience)
            self._under_way[key] = fetch
            fetch.task.add_done_callback(lambda done: self._forget(key, done))
        if on_progress is not None:
            fetch.audience.add(on_progress)
        return await asyncio.shield(fetch.task)

    def _forget(self, key: str, task: asyncio.Task[Fetched]) -> None:
        self._under_way.pop(key, None)
        if not task.cancelled():
            task.exception()

    async def _fetch(
        self, reference: Reference, sites: SourceSites, key: str, on_progress: DownloadListener
    ) -> Fetched:
        found = await find_source(reference, sites, self._downloader)
        config = await self._downloader.fetch_json(found.peft_config) if found.peft_config else None
        try:
            fetched = await self._downloader.fetch(found.file, on_progress)
        except LoraDownloadError as error:
            raise LoraDownloadError(found.note + error.message) from error
        with self._files.adding():
            converted = await self._convert(fetched, config, key)
            size = (await asyncio.to_thread(converted.path.stat)).st_size
            async with self._database.write() as connection:
                await keep_download(connection, key, converted.sha256, size)
        await self._make_room()
        return converted, found

    async def _convert(self, fetched: Path, config: object, key: str) -> ConvertedAdapter:
        try:
            return await self._files.convert(fetched, config if isinstance(config, dict) else None)
        except AdapterError as error:
            self._remember_refusal(key, error.message)
            raise
        finally:
            await asyncio.to_thread(fetched.unlink)

    def _remember_refusal(self, key: str, message: str) -> None:
        """A file that was refused is not fetched again at once, however often it is asked for."""
        if len(self._refused) >= _MOST_REFUSALS:
            self._refused.clear()
        self._refused[key] = (time.monotonic() + _REFUSAL_SECONDS, message)

    async def _make_room(self) -> None:
        """Remove the longest unused fetched files beyond the limit; the library's own stay."""
        async with self._database.read() as connection:
            downloads = await list_downloads(connection)
            sizes = {each.sha256: each.bytes for each in downloads}
            kept = {sha256 for sha256 in sizes if await is_in_library(connection, sha256)}
        excess = sum(size for sha256, size in sizes.items() if sha256 not in kept) - self._cache_bytes
        latest = {each.sha256: each.used_at.timestamp() for each in downloads}
        for sha256 in sorted(sizes.keys() - kept, key=lambda each: latest[each]):
            if excess <= 0 or not self._files.is_settled(latest[sha256]):
                return
            if self._files.is_needed(sha256):
                continue
            async with self._database.write() as connection:
                await forget_downloads(connection, sha256)
            self._files.remove(sha256)
            excess -= sizes[sha256]
