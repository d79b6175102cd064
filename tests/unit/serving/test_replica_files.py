"""LoRA files on a replica's disk: fetched once, checked by their hash, and removed when there are too many."""

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from schnell.assets.links import LinkSigner
from schnell.assets.local import LocalAssets
from schnell.errors import AdapterError
from schnell.loras.replicas import ReplicaShelf
from schnell.serving.replica_files import FileMissingError, ReplicaFiles
from schnell.spec import AdapterUse, GenerationSpec, Job


class Place:
    """A gateway's shelf and a replica's folder, around one folder of pictures."""

    def __init__(self, folder: Path, most_bytes: int = 10**9) -> None:
        self.folder = folder
        self.store = LocalAssets(folder / "pictures", LinkSigner("x" * 32), "http://test")
        self.shelf = ReplicaShelf(self.store)
        self.fetched: list[str] = []
        self.files = ReplicaFiles(folder / "replica", self.fetch, most_bytes)

    async def fetch(self, name: str, path: Path) -> bool:
        self.fetched.append(name)
        await asyncio.sleep(0)
        return await self.store.fetch_file(name, path)

    def job(self, *names: str) -> Job:
        uses = []
        for name in names:
            path = self.folder / f"{name}.safetensors"
            path.write_bytes(name.encode() * 100)
            uses.append(AdapterUse(name, f"source of {name}", path, 1.0))
        return Job("job", "team", GenerationSpec("x"), 0, tuple(uses))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_a_file_reaches_the_replica_under_the_hash_of_its_bytes(place: Place) -> None:
    job = place.job("cat", "dog")
    contents = await place.shelf(job.adapters)
    placed = await place.files.place(job, contents)
    assert [use.path.read_bytes() for use in placed.adapters] == [b"cat" * 100, b"dog" * 100]
    assert placed.adapters[0].path.stem == hashlib.sha256(b"cat" * 100).hexdigest()
    assert placed.adapters[0].sha256 == "source of cat"


async def test_a_burst_fetches_a_file_once(place: Place) -> None:
    job = place.job("cat")
    contents = await place.shelf(job.adapters)
    await asyncio.gather(*[place.files.place(job, contents) for _ in range(20)])
    assert len(place.fetched) == 1


async def test_other_bytes_than_the_gateway_hashed_are_refused(place: Place) -> None:
    job = place.job("cat")
    contents = await place.shelf(job.adapters)
    [shared] = (place.folder / "pictures").rglob("*.safetensors")
    shared.write_bytes(b"something else")
    with pytest.raises(AdapterError, match="not this LoRA"):
        await place.files.place(job, contents)
    assert list((place.folder / "replica").iterdir()) == []


async def test_what_was_removed_from_the_store_is_put_there_again_on_demand(place: Place) -> None:
    job = place.job("cat")
    contents = await place.shelf(job.adapters)
    [shared] = (place.folder / "pictures").rglob("*.safetensors")
    shared.unlink()
    with pytest.raises(FileMissingError):
        await place.files.place(job, await place.shelf(job.adapters))
    contents = await place.shelf(job.adapters, again=True)
    assert (await place.files.place(job, contents)).adapters[0].path.is_file()


async def test_the_least_recently_used_files_go_and_held_ones_stay(tmp_path: Path) -> None:
    place = Place(tmp_path, most_bytes=700)
    job = place.job("one", "two")
    contents = await place.shelf(job.adapters)
    placed = await place.files.place(job, contents)
    for age, use in zip((200, 100), placed.adapters, strict=True):
        os.utime(use.path, (use.path.stat().st_mtime - age,) * 2)
    third = place.job("six")
    with place.files.holding([contents["source of one"]]):
        await place.files.place(third, await place.shelf(third.adapters))
        fourth = place.job("ten")
        await place.files.place(fourth, await place.shelf(fourth.adapters))
    left = {path.read_bytes()[:3] for path in (tmp_path / "replica").iterdir()}
    assert left == {b"one", b"six", b"ten"}
