import asyncio
import io
import os
import time
from pathlib import Path
from typing import Any

import pytest

from schnell.assets.links import LinkSigner
from schnell.assets.local import LocalAssets
from schnell.errors import AssetError, NotFoundError

KEY = "development/images/2025_10_24_15_09_24_339_000001.webp"


@pytest.fixture
def store(tmp_path: Path) -> LocalAssets:
    return LocalAssets(tmp_path / "assets", LinkSigner("secret"), "http://pictures.example")


async def test_what_was_put_comes_back(store: LocalAssets) -> None:
    await store.put(KEY, b"picture", "image/webp")
    assert await store.get(KEY) == b"picture"
    assert await store.list_keys() == [KEY]


async def test_deleted_pictures_are_gone_and_deleting_twice_is_no_error(store: LocalAssets) -> None:
    await store.put(KEY, b"picture", "image/webp")
    await store.delete([KEY])
    await store.delete([KEY])
    with pytest.raises(NotFoundError):
        await store.get(KEY)


async def test_a_write_that_fails_leaves_nothing(store: LocalAssets) -> None:
    store.path(KEY).mkdir(parents=True)  # a folder where the file shall go
    with pytest.raises(AssetError):
        await store.put(KEY, b"picture", "image/webp")
    await store.close()
    assert await store.list_keys() == []
    assert not [each for each in store.root.rglob("*") if each.is_file()]


async def test_a_killed_servers_drafts_are_swept(store: LocalAssets) -> None:
    draft = store.root / ".drafts" / "dead" / "half"
    draft.parent.mkdir(parents=True)
    draft.write_bytes(b"half a pict")
    store.sweep_drafts({"living"})
    assert not draft.parent.exists()


async def test_keys_cannot_lead_out_of_the_store(store: LocalAssets) -> None:
    for wrong in ("../secret", "/etc/passwd", f"../{KEY}"):
        with pytest.raises(NotFoundError):
            store.path(wrong)


async def test_links_go_to_the_public_address(store: LocalAssets) -> None:
    assert store.url(KEY, 60).startswith(f"http://pictures.example/files/{KEY}?expires=")


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
async def test_a_picture_of_any_size_comes_back_whole(store: LocalAssets, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    await store.put(KEY, data[:size], "image/webp")
    assert await store.get(KEY) == data[:size]


async def test_a_write_that_takes_a_few_bytes_at_a_time_is_gone_on_with(
    store: LocalAssets, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(data[:3])

    monkeypatch.setattr("builtins.open", lambda path, *_, **__: Slow(path, "w"))
    await store.put(KEY, b"ten bytes.", "image/webp")
    monkeypatch.undo()
    assert await store.get(KEY) == b"ten bytes."


async def test_pictures_that_are_stored_at_once_do_not_mix(store: LocalAssets) -> None:
    keys = [KEY.replace("000001", f"{number:06d}") for number in range(20)]
    await asyncio.gather(*(store.put(key, key.encode() * 1000, "image/webp") for key in keys))
    assert [await store.get(key) for key in keys] == [key.encode() * 1000 for key in keys]
    assert await store.list_keys() == sorted(keys)


async def test_a_picture_that_is_stored_again_is_the_newer_one(store: LocalAssets) -> None:
    await store.put(KEY, b"older, longer", "image/webp")
    await store.put(KEY, b"newer", "image/webp")
    assert await store.get(KEY) == b"newer"


async def test_a_store_that_closes_removes_its_own_drafts_alone(store: LocalAssets, tmp_path: Path) -> None:
    other = LocalAssets(tmp_path / "assets", LinkSigner("secret"), "http://pictures.example")
    for each in (store, other):
        await each.put(KEY, b"picture", "image/webp")
    await store.close()
    assert len(list((store.root / ".drafts").iterdir())) == 1
    await store.put(KEY, b"again", "image/webp")
    assert await other.get(KEY) == b"again"


async def test_what_is_no_picture_is_not_listed(store: LocalAssets) -> None:
    await store.put(KEY, b"picture", "image/webp")
    (store.root / "notes.txt").write_text("x")
    (store.root / "development" / "images" / "thumbs.db").write_text("x")
    assert await store.list_keys() == [KEY]


async def test_a_link_of_the_store_opens_its_picture(store: LocalAssets) -> None:
    path, _, query = store.url(KEY, 60).removeprefix("http://pictures.example").partition("?")
    present = time.time()
    assert present < store.signer.check(path.encode(), query.encode(), present) <= present + 61


async def test_a_picture_whose_draft_another_server_sweeps_away_is_written_once_more(
    store: LocalAssets, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    swept: list[str] = []

    def sweep_first(draft: str, path: str) -> None:
        if not swept:
            swept.append(draft)
            store.sweep_drafts(living=())
        replace(draft, path)

    await store.put(KEY, b"older", "image/webp")
    monkeypatch.setattr("os.replace", sweep_first)
    await store.put(KEY, b"picture", "image/webp")
    assert swept
    assert await store.get(KEY) == b"picture"


async def test_a_living_servers_drafts_stay_and_a_write_whose_draft_was_swept_is_done_again(tmp_path: Path) -> None:
    store = LocalAssets(tmp_path / "assets", LinkSigner("secret"), "http://pictures.example", owner="living")
    await store.put(KEY, b"picture", "image/webp")
    draft = store.root / ".drafts" / "living" / "half"
    draft.write_bytes(b"half a pict")
    store.sweep_drafts({"living"})
    assert draft.exists()
    store.sweep_drafts({"another"})  # as by a server that takes it for dead
    assert not draft.parent.exists()
    await store.put(KEY, b"again", "image/webp")
    assert await store.get(KEY) == b"again"


async def test_two_servers_that_sweep_at_once_do_not_stumble(tmp_path: Path, store: LocalAssets) -> None:
    for number in range(20):
        draft = store.root / ".drafts" / f"dead-{number}" / "half"
        draft.parent.mkdir(parents=True)
        draft.touch()
    await asyncio.gather(*(asyncio.to_thread(store.sweep_drafts, set[str]()) for _ in range(8)))
    assert list((store.root / ".drafts").iterdir()) == []
