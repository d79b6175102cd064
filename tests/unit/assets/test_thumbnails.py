import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schnell.assets.links import LinkSigner
from schnell.assets.local import LocalAssets
from schnell.assets.store import thumbnail_key
from schnell.assets.thumbnails import MOST_BYTES, SIDE, Thumbnails, make_thumbnail
from schnell.errors import NotFoundError

KEY = "development/images/2025_10_24_15_09_24_339_000001.webp"


def picture(width: int, height: int, file_format: str = "PNG") -> bytes:
    """Noise, which compresses worst."""
    file = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> LocalAssets:
    return LocalAssets(tmp_path / "assets", LinkSigner("secret"), "http://pictures.example")


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(("width", "height"), [(1344, 768), (256, 1440), (96, 64)])
def test_a_thumbnail_is_small_and_keeps_its_proportions(width: int, height: int, file_format: str) -> None:
    data = make_thumbnail(picture(width, height, file_format))
    assert len(data) <= MOST_BYTES
    with Image.open(io.BytesIO(data)) as found:
        assert found.format == "WEBP"
        assert max(found.size) <= SIDE
        assert found.width / found.height == pytest.approx(width / height, rel=0.02)


async def test_a_thumbnail_is_made_when_it_is_first_looked_at_and_kept(store: LocalAssets) -> None:
    await store.put(KEY, picture(300, 200), "image/webp")
    thumbnails = Thumbnails(store)
    made = await thumbnails.get(KEY)
    assert await store.get(thumbnail_key(KEY)) == made
    assert await thumbnails.get(KEY) == made
    assert await store.list_keys() == [KEY]


async def test_a_thumbnail_goes_with_its_picture(store: LocalAssets) -> None:
    await store.put(KEY, picture(300, 200), "image/webp")
    thumbnails = Thumbnails(store)
    await thumbnails.get(KEY)
    await store.delete([KEY])
    with pytest.raises(NotFoundError):
        await thumbnails.get(KEY)
    assert not [each for each in store.root.rglob("*.webp") if each.is_file()]


async def test_thumbnails_that_were_asked_for_are_made_once_nothing_else_is_to_be_done(store: LocalAssets) -> None:
    await store.put(KEY, picture(300, 200), "image/webp")
    busy = True
    thumbnails = Thumbnails(store, lambda: busy)
    thumbnails.ask_for([KEY, "development/images/2025_10_24_15_09_24_339_000009.webp"])
    await asyncio.sleep(0.05)
    assert not store.path(thumbnail_key(KEY)).exists()
    busy = False
    async with asyncio.timeout(30):
        while not store.path(thumbnail_key(KEY)).exists():  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.02)
    await thumbnails.close()
