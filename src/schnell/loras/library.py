"""The LoRA library: what a reference means to a team, and which LoRAs are added, listed, shown and removed.

A reference is looked for among the team's own LoRAs, the public ones and the bundled ones; then it may be a remote one.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from schnell.adapters import AdapterReport, ConvertedAdapter
from schnell.assets.store import AssetStore
from schnell.database.session import Database
from schnell.errors import (
    AdapterError,
    AssetError,
    ConflictError,
    FieldProblem,
    InvalidFieldError,
    NotFoundError,
)
from schnell.loras.bundled import BundledLora, BundledLoras
from schnell.loras.files import AdapterFiles
from schnell.loras.references import (
    LibraryName,
    check_name,
    is_library_name,
    naming,
    parse_reference,
    show_reference,
    suggest_name,
)
from schnell.loras.remote import RemoteLoras
from schnell.loras.repository import (
    NO_LABELS,
    PUBLIC,
    Labels,
    LibraryLora,
    LoraNote,
    count_loras,
    delete_lora,
    draft_lora,
    forget_downloads,
    insert_lora,
    is_downloaded,
    is_in_library,
    list_loras,
    look_up_lora,
    name_taken,
)
from schnell.loras.shelf import LoraShelf
from schnell.loras.sources import FoundSource
from schnell.outbound.downloads import DownloadListener
from schnell.spec import AdapterUse, FetchListener, FetchProgress, LoraRef, MissingAdapter


class LoraLibrary:
    """The LoRAs of every team for the served model. A team may add `per_team` of its own.

    With a `store`, other servers that share the database find there what one of them has added.
    """

    def __init__(  # noqa: PLR0913 - it is built in one place, from one part each
        self,
        database: Database,
        files: AdapterFiles,
        remote: RemoteLoras,
        *,
        bundled: Sequence[BundledLora] = (),
        per_team: int = 200,
        store: AssetStore | None = None,
    ) -> None:
        self._database = database
        self._files = files
        self._remote = remote
        self.remote_lookups = remote.lookups
        self._bundled = BundledLoras(files, bundled)
        self._per_team = per_team
        self._shelf = LoraShelf(files, store)
        # entries come and go one at a time: none appears between the last look for one and the removal of its file
        self._changing = asyncio.Lock()

    async def locate(self, refs: Sequence[LoraRef], team_id: str) -> tuple[AdapterUse | MissingAdapter, ...]:
        """The converted file of each LoRA that a team's request names, in order; nothing is fetched.

        Raises:
            InvalidFieldError: nothing has this name, or it is no reference at all.
            AdapterError: the file is not understood, or does not fit the model.
            LoraSourceError: it may not be fetched.
        """
        return tuple([await self._locate(ref, team_id) for ref in refs])

    async def fetch(self, missing: MissingAdapter, team_id: str, on_fetch: FetchListener | None = None) -> AdapterUse:
        """Fetch a LoRA that is not here; `on_fetch` is called with how far that is.

        Raises:
            AdapterError: the file is not understood, or does not fit the model.
            LoraSourceError, LoraDownloadError: it may not, or could not, be fetched.
        """

        def report(received: int, total: int | None) -> None:
            if on_fetch is not None:
                on_fetch(FetchProgress(missing.name, received, total))

        with naming(missing.field, missing.name):
            reference = parse_reference(missing.reference, missing.field)
            sha256, path = await self._remote.find(reference, team_id, report)
        self._files.note_named(sha256)
        return AdapterUse(missing.name, sha256, path, missing.scale)

    async def resolve(
        self, refs: Sequence[LoraRef], team_id: str, on_fetch: FetchListener | None = None
    ) -> tuple[AdapterUse, ...]:
        """`locate`, and `fetch` what is not here. Raises as both."""
        found = await self.locate(refs, team_id)
        return tuple(
            [await self.fetch(each, team_id, on_fetch) if isinstance(each, MissingAdapter) else each for each in found]
        )

    async def add(  # noqa: PLR0913 - what is added, whose it is, and who adds it
        self,
        source: str,
        *,
        owner: str,
        labels: Labels = NO_LABELS,
        created_by: str,
        on_progress: DownloadListener | None = None,
        note: LoraNote | None = None,
    ) -> LibraryLora:
        """Fetch a remote LoRA, also if it is here, and add it to the library of `owner` (a team's id, or `PUBLIC`).

        `note` is called in the transaction that adds it.

        Raises:
            InvalidFieldError: a wrong reference or name, or the library is full.
            ConflictError: the name is taken.
            AdapterError: the file is not understood, or does not fit the model.
            LoraSourceError: it may not be fetched.
            LoraDownloadError: it could not be fetched.
        """
        reference = parse_reference(source, "source")
        if isinstance(reference, LibraryName):
            raise InvalidFieldError(
                FieldProblem("source", f"{show_reference(source)[:80]!r} is a name, not a place to fetch from")
            )
        # before the download, which can take minutes
        await self.check_room(owner, labels.name)
        async with self._adding():
            converted, found = await self._remote.fetch(reference, owner, on_progress)
            labels = replace(labels, name=labels.name or suggest_name(found.name))
            return await self._insert(converted, owner, labels, source, created_by, found=found, note=note)

    async def add_file(  # noqa: PLR0913 - what is added, whose it is, and who adds it
        self,
        source: BinaryIO,
        *,
        owner: str,
        labels: Labels = NO_LABELS,
        file_name: str,
        created_by: str,
        note: LoraNote | None = None,
    ) -> LibraryLora:
        """Add an uploaded file to the library of `owner`; `note` and what is raised are as for `add`."""
        labels = replace(labels, name=labels.name or suggest_name(file_name.rpartition("/")[2].rpartition(".")[0]))
        await self.check_room(owner, labels.name)
        uploaded = await self._files.receive(source)
        async with self._adding():
            try:
                converted = await self._files.convert(uploaded, team=owner)
            finally:
                await asyncio.to_thread(uploaded.unlink)
            return await self._insert(converted, owner, labels, file_name, created_by, note=note)

    async def add_path(
        self,
        path: Path,
        *,
        owner: str,
        labels: Labels = NO_LABELS,
        created_by: str,
        note: LoraNote | None = None,
    ) -> LibraryLora:
        """Add a file of this machine to the library of `owner`; `note` and what is raised are as for `add`."""
        labels = replace(labels, name=labels.name or suggest_name(path.stem))
        await self.check_room(owner, labels.name)
        async with self._adding():
            converted = await self._files.convert(path)
            return await self._insert(converted, owner, labels, path.name, created_by, note=note)

    async def list(self, team_id: str | None = None) -> tuple[LibraryLora, ...]:
        """What a team may name: its own, the public and the bundled LoRAs. Without a team, those of every team."""
        async with self._database.read() as connection:
            found = await list_loras(connection, team_id)
        return (*found, *await self._bundled.list())

    async def added(self) -> tuple[LibraryLora, ...]:
        """Every LoRA that was added, by any team: all but the bundled ones."""
        async with self._database.read() as connection:
            return tuple(await list_loras(connection))

    async def show(self, name_or_id: str, team_id: str) -> LibraryLora:
        """The LoRA that a team means by a name, an alias or an id. Raises NotFoundError where there is none."""
        async with self._database.read() as connection:
            found = await look_up_lora(connection, team_id, name_or_id)
        if found is not None:
            return found
        if (lora := self._bundled.find(name_or_id)) is not None:
            return await self._bundled.show(lora)
        raise NotFoundError(f"no LoRA is called {name_or_id[:100]!r}")

    async def find_preview(self, name_or_id: str, team_id: str) -> Path:
        """The path of a LoRA's preview, a WebP file. Raises NotFoundError where there is no LoRA, or no preview."""
        lora = await self.show(name_or_id, team_id)
        path = self._preview_path(lora)
        if not await asyncio.to_thread(path.is_file):
            raise NotFoundError(f"the LoRA {lora.name!r} has no preview picture")
        return path

    async def list_previewed(self, found: Iterable[LibraryLora]) -> frozenset[str]:
        """The ids of those of these LoRAs that have a preview picture."""
        paths = {lora.id: self._preview_path(lora) for lora in found}
        return await asyncio.to_thread(lambda: frozenset(id_ for id_, path in paths.items() if path.is_file()))

    async def keep_preview(self, lora: LibraryLora, picture: bytes) -> None:
        """Store a WebP picture as this LoRA's preview, unless the LoRA is gone by now."""
        async with self._changing:
            async with self._database.read() as connection:
                found = await look_up_lora(connection, lora.owner, lora.id)
            if found is not None:
                await asyncio.to_thread(self._files.keep_preview, lora.id, picture)

    async def remove(self, name_or_id: str, owner: str, note: LoraNote | None = None) -> LibraryLora:
        """Remove a LoRA from its owner's library; `note` is called in the transaction that does.

        Its file goes if nothing else uses it; where jobs need it, `remove_unwanted` takes it away once they have ended.

        Raises:
            NotFoundError: the owner has none of this name or id.
        """
        async with self._changing, self._database.write() as connection:
            removed = await delete_lora(connection, owner, name_or_id)
            if note is not None:
                await note(connection, removed)
            # what was fetched for the library alone goes; another team may name it by its reference, and keeps it
            if not await is_in_library(connection, removed.sha256):
                await forget_downloads(connection, removed.sha256, used=False)
            shared = await is_in_library(connection, removed.sha256)
        await asyncio.to_thread(self._files.remove_preview, removed.id)
        await self._remove_unused(removed.sha256)
        if not shared:
            await self._shelf.remove(removed.sha256)
        return removed

    async def remove_unwanted(self) -> int:
        """Remove the files that were needed when their entries were removed, and are no more. Returns how many."""
        await asyncio.to_thread(self._files.remove_leftovers)
        removed = 0
        for sha256 in await asyncio.to_thread(self._files.list_unwanted):
            removed += await self._remove_unused(sha256)
        return removed

    def holding(self, adapters: Iterable[AdapterUse]) -> AbstractContextManager[None]:
        """Keep the files of these LoRAs on disk while the block runs: a job uses them."""
        return self._files.holding(use.sha256 for use in adapters)

    def check_space(self, size: int) -> None:
        """Refuse an upload of `size` bytes that the disk has no room for, before it comes. Raises DiskError."""
        self._files.check_space(size)

    async def inspect(self, source: BinaryIO, team_id: str) -> AdapterReport:
        """What an uploaded file is found to be; what is wrong with it is in `problem`. The file is not kept."""
        uploaded = await self._files.receive(source)
        try:
            return await self._files.inspect(uploaded, team_id)
        finally:
            await asyncio.to_thread(uploaded.unlink)

    async def _locate(self, ref: LoraRef, team_id: str) -> AdapterUse | MissingAdapter:
        text, field = ref.reference.strip(), ref.place
        name = show_reference(text)
        with naming(field, name):
            found = await self._find_named(text, team_id)
            if found is None:
                reference = parse_reference(text, field)
                if isinstance(reference, LibraryName):
                    raise InvalidFieldError(FieldProblem(field, await self._describe_unknown(reference.name, team_id)))
                found = await self._remote.find_here(reference, team_id)
        if found is None:
            return MissingAdapter(field, text, name, ref.scale)
        self._files.note_named(found[0])
        return AdapterUse(name, *found, ref.scale)

    async def _find_named(self, text: str, team_id: str) -> tuple[str, Path] | None:
        if is_library_name(text.lower()):
            async with self._database.read() as connection:
                found = await look_up_lora(connection, team_id, text)
            if found is not None:
                path = await self._files.find(found.sha256)
                if path is None and await self._shelf.fetch(found.sha256):
                    path = await self._files.find(found.sha256)
                if path is None:
                    raise AdapterError("its file is gone from this server; add it again")
                return found.sha256, path
        if (lora := self._bundled.find(text)) is not None:
            converted = await self._bundled.convert(lora)
            return converted.sha256, converted.path
        return None

    async def _describe_unknown(self, name: str, team_id: str) -> str:
        names = [lora.name for lora in await self.list(team_id)]
        known = f"there are {', '.join(names[:20])}" if names else "the library is empty"
        return f"no LoRA is called {name!r}: {known}. A LoRA of the hub is written owner/name"

    async def check_room(self, owner: str, name: str | None) -> str:
        """Refuse what could not be added. Returns the name in its tidy form, or an empty one.

        Raises:
            InvalidFieldError: the name cannot be one, or the owner has as many LoRAs as it may have.
            ConflictError: the owner has a LoRA of this name.
        """
        # two that add at once may both pass: the table itself refuses the second of one name, and one LoRA more than
        # `per_team` does no harm
        tidy = check_name(name) if name else ""
        async with self._database.read() as connection:
            count = await count_loras(connection, owner)
            taken = await look_up_lora(connection, owner, tidy) if tidy else None
        if owner != PUBLIC and count >= self._per_team:
            raise InvalidFieldError(
                FieldProblem("name", f"the team has {count} LoRAs, the most it may have; remove one")
            )
        if taken is not None and taken.owner == owner:
            raise name_taken(tidy)
        return tidy

    async def _insert(  # noqa: PLR0913 - who adds what, and how they call it
        self,
        converted: ConvertedAdapter,
        owner: str,
        labels: Labels,
        source: str,
        created_by: str,
        *,
        found: FoundSource | None = None,
        note: LoraNote | None = None,
    ) -> LibraryLora:
        info = found.complete(converted.info) if found else converted.info
        info = replace(
            info, trigger_words=labels.trigger_words or info.trigger_words, licence=labels.licence or info.licence
        )
        size = (await asyncio.to_thread(converted.path.stat)).st_size
        lora = draft_lora(
            info,
            converted.sha256,
            size,
            owner=owner,
            name=check_name(labels.name or ""),
            source="".join(filter(str.isprintable, show_reference(source)))[:600],
            created_by=created_by,
        )
        try:
            await self._shelf.put(lora.sha256)
            async with self._changing, self._database.write() as connection:
                await insert_lora(connection, lora)
                if note is not None:
                    await note(connection, lora)
        except (AssetError, ConflictError):
            # the file was converted in vain, unless another LoRA or reference leads to it
            await self._remove_unused(lora.sha256)
            raise
        return lora

    @asynccontextmanager
    async def _adding(self) -> AsyncIterator[None]:
        """Keep files on disk while one of them gets its entry. One that got none goes again."""
        try:
            with self._files.adding():
                yield
        except ConflictError:
            await self.remove_unwanted()
            raise

    async def _remove_unused(self, sha256: str) -> bool:
        """Remove a file that nothing leads to, or note that it is to go. Whether it is gone."""
        async with self._changing:
            async with self._database.read() as connection:
                used = await is_in_library(connection, sha256) or await is_downloaded(connection, sha256)
            if not used and not self._bundled.uses(sha256):
                return self._files.remove(sha256)
            self._files.keep(sha256)
            return False

    def _preview_path(self, lora: LibraryLora) -> Path:
        return self._bundled.preview_of(lora.id) or self._files.preview_path(lora.id)
