import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import update

from schnell.adapters import CanonicalInfo
from schnell.clock import now
from schnell.database.connection import Connection
from schnell.database.session import Database
from schnell.database.tables import lora_downloads
from schnell.errors import ConflictError, NotFoundError
from schnell.loras.repository import (
    PUBLIC,
    Download,
    LibraryLora,
    count_loras,
    delete_lora,
    draft_lora,
    find_download,
    forget_downloads,
    insert_lora,
    is_downloaded,
    is_in_library,
    is_touch_due,
    keep_download,
    list_downloads,
    list_loras,
    look_up_lora,
    touch_download,
)

INFO = CanonicalInfo(
    source_sha256="c" * 64,
    modules={"transformer": 2},
    forms={"LoRA": 2},
    layout="diffusers",
    made_for="FLUX.1",
    rank=16,
    width=3072,
    trigger_words=("TOK",),
    base_model=("flux",),
    licence=None,
    warnings=("a warning",),
)


def draft(name: str, owner: str = "team-1", sha256: str = "a" * 64) -> LibraryLora:
    return draft_lora(INFO, sha256, 1000, owner=owner, name=name, source="x", created_by="me")


async def insert(connection: Connection, *loras: LibraryLora) -> None:
    for lora in loras:
        await insert_lora(connection, lora)


async def test_a_lora_comes_back_as_it_was_stored(database: Database) -> None:
    lora = draft("style")
    async with database.write() as connection:
        await insert(connection, lora)
    async with database.read() as connection:
        assert await list_loras(connection) == [lora]
        assert await look_up_lora(connection, "team-1", "Style") == lora
        assert await look_up_lora(connection, "team-1", lora.id) == lora
    assert (lora.trigger_words, lora.warnings, lora.bytes) == (("TOK",), ("a warning",), 1000)


async def test_a_name_is_taken_within_its_owners_library_alone(database: Database) -> None:
    async with database.write() as connection:
        await insert(connection, draft("style"), draft("style", "team-2"), draft("style", PUBLIC))
    for owner in ("team-1", PUBLIC):
        with pytest.raises(ConflictError, match="'style' already"):
            async with database.write() as connection:
                await insert_lora(connection, draft("style", owner))
    async with database.read() as connection:
        assert [await count_loras(connection, owner) for owner in ("team-1", "team-2", PUBLIC, "team-3")] == [
            1,
            1,
            1,
            0,
        ]


async def test_a_team_sees_its_own_before_the_public_and_nothing_of_others(database: Database) -> None:
    own, public, other = draft("style"), draft("style", PUBLIC), draft("theirs", "team-2")
    async with database.write() as connection:
        await insert(connection, public, other, own, draft("about", PUBLIC))
        assert await look_up_lora(connection, "team-1", "style") == own
        assert await look_up_lora(connection, "team-3", "style") == public
        assert await look_up_lora(connection, "team-1", "theirs") is None
        assert await look_up_lora(connection, "team-1", other.id) is None
        assert [lora.name for lora in await list_loras(connection, "team-1")] == ["about", "style", "style"]
        assert (await list_loras(connection, "team-1"))[1] == own
        assert len(await list_loras(connection)) == 4


@pytest.mark.parametrize("text", ["", "a/b", "%", "_", "é", "x' OR 1=1 --"])
async def test_what_no_lora_can_be_called_is_found_nowhere(database: Database, text: str) -> None:
    async with database.write() as connection:
        await insert(connection, draft("style"))
        assert await look_up_lora(connection, "team-1", text) is None


async def test_an_owner_deletes_their_own_loras_only(database: Database) -> None:
    own, public = draft("own"), draft("public", PUBLIC)
    async with database.write() as connection:
        await insert(connection, own, public)
        for owner, name in (("team-1", "public"), ("team-2", "own"), (PUBLIC, "own"), ("team-1", "none")):
            with pytest.raises(NotFoundError, match="that you may remove"):
                await delete_lora(connection, owner, name)
        assert await delete_lora(connection, "team-1", "own") == own
        assert await delete_lora(connection, PUBLIC, public.id) == public
        assert await list_loras(connection) == []


async def test_a_file_is_in_the_library_as_long_as_one_lora_has_it(database: Database) -> None:
    async with database.write() as connection:
        await insert(connection, draft("one"), draft("two"), draft("three", sha256="b" * 64))
        await delete_lora(connection, "team-1", "one")
        assert await is_in_library(connection, "a" * 64)
        await delete_lora(connection, "team-1", "two")
        assert not await is_in_library(connection, "a" * 64)
        assert await is_in_library(connection, "b" * 64)


async def test_a_download_is_kept_replaced_and_forgotten_by_its_file(database: Database) -> None:
    async with database.write() as connection:
        await keep_download(connection, "x", "a" * 64, 10)
        await keep_download(connection, "x", "b" * 64, 20)
        await keep_download(connection, "y", "b" * 64, 20)
        found = await find_download(connection, "x")
        assert found is not None
        assert (found.sha256, found.bytes, found.fetched_at) == ("b" * 64, 20, found.used_at)
        assert not await is_downloaded(connection, "a" * 64)
        assert await is_downloaded(connection, "b" * 64)
        await forget_downloads(connection, "b" * 64)
        assert await list_downloads(connection) == []
        assert await find_download(connection, "x") is None


async def test_downloads_are_listed_by_their_last_use(database: Database) -> None:
    async with database.write() as connection:
        for days, reference in enumerate(["new", "middle", "old"]):
            await keep_download(connection, reference, reference[0] * 64, 1)
            earlier = update(lora_downloads).where(lora_downloads.c.reference == reference)
            await connection.execute(earlier.values(used_at=now() - timedelta(days=days + 1)))
        assert [each.reference for each in await list_downloads(connection)] == ["old", "middle", "new"]
        await touch_download(connection, "old")
        assert [each.reference for each in await list_downloads(connection)] == ["middle", "new", "old"]


def test_a_use_is_noted_once_a_minute() -> None:
    download = Download("x", "a" * 64, 1, now() - timedelta(days=1), now())
    assert is_touch_due(replace(download, used_at=download.fetched_at))
    assert not is_touch_due(download)
    assert not is_touch_due(replace(download, used_at=now() - timedelta(seconds=50)))
    assert is_touch_due(replace(download, used_at=now() - timedelta(seconds=61)))


async def test_servers_that_fetch_one_reference_at_once_all_note_it(database: Database) -> None:
    async def note(size: int) -> None:
        async with database.write() as connection:
            await keep_download(connection, "owner/name", f"{size:064d}", size)

    await asyncio.gather(*(note(size) for size in range(1, 9)))
    async with database.read() as connection:
        [kept] = await list_downloads(connection)
    assert kept.sha256 == f"{kept.bytes:064d}"
