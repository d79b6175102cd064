"""LoRAs that are named by a remote reference: found as they were fetched before, or fetched and converted.

Their files stay until the room for them is used up, the one unused for longest going first.
"""

import asyncio
import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from schnell.adapters import ConvertedAdapter
from schnell.database.session import Database
from schnell.errors import AdapterError, LoraDownloadError
from schnell.loras.files import AdapterFiles
from schnell.loras.references import Reference, key_of
from schnell.loras.repository import (
    find_download,
    forget_downloads,
    is_in_library,
    is_touch_due,
    keep_download,
    list_downloads,
    touch_download,
)
from schnell.loras.sources import FoundSource, SourceSites, address_of, find_source
from schnell.loras.tokens import SourceTokens
from schnell.loras.turns import Turns
from schnell.outbound.downloads import Downloader, DownloadListener

#: How many refused references are remembered, and for how long: in this process's memory, which callers must not fill.
_MOST_REFUSALS: Final = 1000
_REFUSAL_SECONDS: Final = 300
_LONGEST_KEY: Final = 600
Fetched = tuple[ConvertedAdapter, FoundSource]


class _Listeners:
    """All listeners to one download. One that is added later is called at once with how far the download is by then."""

    def __init__(self) -> None:
        self._listeners: list[DownloadListener] = []
        self._latest: tuple[int, int | None] | None = None

    def add(self, listener: DownloadListener) -> None:
        self._listeners.append(listener)
        if self._latest is not None:
            listener(*self._latest)

    def call(self, received: int, total: int | None) -> None:
        self._latest = (received, total)
        for listener in self._listeners:
            listener(received, total)


@dataclass(frozen=True, slots=True)
class _SharedFetch:
    """A download under way, with the listeners of all who wait for it."""

    task: asyncio.Task[Fetched]
    listeners: _Listeners
    waiting: set[object] = field(default_factory=set)


class RemoteLoras:
    """Finds and fetches the files of remote references. `cache_bytes` is the room for files that are in no library.

    A team with tokens of its own may see private files at a site: what is fetched for it is found again by it alone.
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
        turns: Turns | None = None,
    ) -> None:
        self._database = database
        self._files = files
        self._downloader = downloader
        self._sites = sites or SourceSites()
        self._tokens = tokens
        self._cache_bytes = cache_bytes
        self._turns = turns or Turns("LoRA downloads", at_once=8, per_team=2, waiting=256)
        self._under_way: dict[str, _SharedFetch] = {}
        self._refused: dict[str, tuple[float, str]] = {}
        self._found = self._fetched = 0

    def lookups(self) -> tuple[int, int]:
        """How many references were found here since the start, and how many fetches began."""
        return self._found, self._fetched

    async def find(
        self, reference: Reference, team_id: str, on_progress: DownloadListener | None = None
    ) -> tuple[str, Path]:
        """The SHA-256 and the path of a reference's converted file, which is fetched if it is not here.

        Raises:
            AdapterError: the file is not understood, or does not fit the model.
            LoraSourceError, LoraDownloadError: it may not, or could not, be fetched.
        """
        if here := await self.find_here(reference, team_id):
            return here
        converted, _ = await self.fetch(reference, team_id, on_progress)
        return converted.sha256, converted.path

    async def find_here(self, reference: Reference, team_id: str) -> tuple[str, Path] | None:
        """As `find` where nothing needs to be fetched; None for a file that would be.

        Raises:
            AdapterError: the file was refused a while ago, or does not fit the model.
            LoraSourceError: its host may not be called, or the server is offline.
        """
        _, key = await self._sites_and_key(reference, team_id)
        async with self._database.read() as connection:
            known = await find_download(connection, key)
        if known is not None and (path := await self._files.find(known.sha256)):
            if is_touch_due(known):
                async with self._database.write() as connection:
                    await touch_download(connection, key)
            self._found += 1
            return known.sha256, path
        until, message = self._refused.get(key, (0.0, ""))
        if time.monotonic() < until:
            raise AdapterError(message)
        self._downloader.check_address(address_of(reference, self._sites))
        return None

    async def fetch(self, reference: Reference, team_id: str, on_progress: DownloadListener | None = None) -> Fetched:
        """Fetch and convert a reference's file, also if it is here. Raises as `find`."""
        sites, key = await self._sites_and_key(reference, team_id)
        return await self._fetch_together(reference, sites, key, team_id, on_progress)

    async def _sites_and_key(self, reference: Reference, team_id: str) -> tuple[SourceSites, str]:
        """The sites with this team's tokens, and the key that a download of the reference is stored under."""
        own = await self._tokens.of_team(team_id) if self._tokens and team_id else {}
        whose = f"{team_id} " if own else ""
        return self._sites.with_tokens(own), _stored_key(f"{whose}{key_of(reference)}")

    async def _fetch_together(
        self, reference: Reference, sites: SourceSites, key: str, team_id: str, on_progress: DownloadListener | None
    ) -> Fetched:
        """Join the fetch of this key that is under way, or start one. It ends with the last one who waits for it."""
        fetch = self._under_way.get(key)
        if fetch is None:
            listeners = _Listeners()
            self._fetched += 1
            task = asyncio.create_task(self._fetch_in_turn(reference, sites, key, team_id, listeners.call))
            fetch = self._under_way[key] = _SharedFetch(task, listeners)
            task.add_done_callback(lambda done: self._end_fetch(key, done))
        if on_progress is not None:
            fetch.listeners.add(on_progress)
        waiter = object()
        fetch.waiting.add(waiter)
        try:
            # a caller who gives up cancels their own waiting, not the fetch of the others
            return await asyncio.shield(fetch.task)
        finally:
            fetch.waiting.discard(waiter)
            if not fetch.waiting and not fetch.task.done():
                # nobody would use it; what has come is kept for an hour, and asking again resumes
                self._under_way.pop(key, None)
                fetch.task.cancel()

    def _end_fetch(self, key: str, task: asyncio.Task[Fetched]) -> None:
        if (known := self._under_way.get(key)) is not None and known.task is task:
            del self._under_way[key]
        # looked at, or asyncio would log it as lost where every caller has given up
        if not task.cancelled():
            task.exception()

    async def _fetch_in_turn(
        self, reference: Reference, sites: SourceSites, key: str, team_id: str, on_progress: DownloadListener
    ) -> Fetched:
        async with self._turns.take(team_id):
            await self._make_room(before=True)
            return await self._fetch(reference, sites, key, team_id, on_progress)

    async def _fetch(
        self, reference: Reference, sites: SourceSites, key: str, team_id: str, on_progress: DownloadListener
    ) -> Fetched:
        found = await find_source(reference, sites, self._downloader)
        config = await self._downloader.fetch_json(found.peft_config) if found.peft_config else None
        try:
            fetched = await self._downloader.fetch(found.file, on_progress, team_id)
        except LoraDownloadError as error:
            raise LoraDownloadError(found.note + error.message) from error
        with self._files.adding():
            converted = await self._convert(fetched, config, key, team_id)
            size = (await asyncio.to_thread(converted.path.stat)).st_size
            async with self._database.write() as connection:
                await keep_download(connection, key, converted.sha256, size)
        await self._make_room()
        return converted, found

    async def _convert(self, fetched: Path, config: object, key: str, team_id: str) -> ConvertedAdapter:
        try:
            return await self._files.convert(fetched, config if isinstance(config, dict) else None, team=team_id)
        except AdapterError as error:
            self._remember_refusal(key, error.message)
            raise
        finally:
            await asyncio.to_thread(self._downloader.room.remove, fetched)

    def _remember_refusal(self, key: str, message: str) -> None:
        """Refuse this key for a while without fetching its file again, which can be gigabytes."""
        if len(self._refused) >= _MOST_REFUSALS:
            self._refused.clear()
        self._refused[key] = (time.monotonic() + _REFUSAL_SECONDS, message)

    async def _make_room(self, *, before: bool = False) -> None:
        """Remove fetched files until the rest has room, the one unused for longest first; the library's files stay.

        Raises:
            LoraDownloadError: `before` another is fetched: those that jobs may need have used the room up.
        """
        async with self._database.read() as connection:
            downloads = await list_downloads(connection)
            sizes = {each.sha256: each.bytes for each in downloads}
            kept = {sha256 for sha256 in sizes if await is_in_library(connection, sha256)}
        excess = sum(size for sha256, size in sizes.items() if sha256 not in kept) - self._cache_bytes
        # listed by their last use: where several references led to one file, the latest counts
        latest = {each.sha256: each.used_at.timestamp() for each in downloads}
        for sha256 in sorted(sizes.keys() - kept, key=lambda each: latest[each]):
            if excess <= 0:
                return
            if self._files.is_needed(sha256) or not self._files.is_past_grace(latest[sha256]):
                continue
            # the rows first: whoever asks meanwhile fetches anew, and is not given a file that is about to go
            async with self._database.write() as connection:
                await forget_downloads(connection, sha256)
            self._files.remove(sha256)
            excess -= sizes[sha256]
        if before and excess > self._downloader.room.budget.total:
            raise LoraDownloadError(
                "the room for fetched LoRAs is used up by those of the last minutes; ask again later"
            )


def _stored_key(key: str) -> str:
    """The key at no more than its column's length, which PostgreSQL enforces; two that begin alike stay two."""
    if len(key) <= _LONGEST_KEY:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f"{key[: _LONGEST_KEY - len(digest) - 1]} {digest}"
