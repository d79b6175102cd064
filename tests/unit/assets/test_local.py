import asyncio
from pathlib import Path

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
