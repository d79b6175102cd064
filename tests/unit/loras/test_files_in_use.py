"""Files of LoRAs stay on disk while anything needs them, and go afterwards."""

import asyncio
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mini_loras import lora_bytes, write_lora
from schnell.adapters import read_model_shape
from schnell.database.session import Database
from schnell.errors import ConflictError
from schnell.loras import files as files_module
from schnell.loras.bundled import read_bundled
from schnell.loras.files import AdapterFiles
from schnell.loras.library import LoraLibrary
from schnell.loras.remote import RemoteLoras
from schnell.loras.repository import Labels
from schnell.models.folder import embedded_home
from schnell.outbound.addresses import AddressPolicy
from schnell.outbound.downloads import Downloader
from schnell.spec import AdapterUse, LoraRef

Make = Callable[[], LoraLibrary]


@pytest.fixture
def others() -> list[str]:
    """Who else draws with the files of this folder."""
    return []


@pytest.fixture
def make(library_database: Database, tmp_path: Path, others: list[str]) -> Make:
    shape = read_model_shape(embedded_home() / "schnell-mini")

    def build() -> LoraLibrary:
        files = AdapterFiles(tmp_path / "adapters", shape, used_by_others=lambda: bool(others))
        outside = RemoteLoras(library_database, files, Downloader(tmp_path, AddressPolicy(), offline=True))
        return LoraLibrary(library_database, files, outside, bundled=read_bundled(tmp_path / "bundled"))

    return build


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "_GRACE_SECONDS", -1)


async def add(library: LoraLibrary, name: str, data: bytes, owner: str = "team") -> None:
    await library.add_file(io.BytesIO(data), owner=owner, labels=Labels(name), file_name="f", created_by="me")


async def use(library: LoraLibrary, name: str, team: str = "team") -> AdapterUse:
    (found,) = await library.resolve([LoraRef(name)], team)
    return found


async def test_a_file_that_jobs_use_goes_when_the_last_of_them_has_ended(make: Make, no_grace: None) -> None:
    library = make()
    await add(library, "style", lora_bytes(1))
    job = await use(library, "style")
    with library.holding([job]):
        with library.holding([job]):
            await library.remove("style", "team")
            assert await library.remove_unwanted() == 0
        assert await library.remove_unwanted() == 0
        assert job.path.is_file()
    assert await library.remove_unwanted() == 1
    assert not job.path.exists()
    assert await library.remove_unwanted() == 0


async def test_a_file_that_a_request_has_just_named_waits_for_its_job(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = make()
    await add(library, "style", lora_bytes(1))
    job = await use(library, "style")
    await library.remove("style", "team")
    assert await library.remove_unwanted() == 0
    assert job.path.is_file()
    monkeypatch.setattr(files_module, "_GRACE_SECONDS", -1)
    assert await library.remove_unwanted() == 1
    assert not job.path.exists()


async def test_what_was_to_go_is_known_after_a_restart(make: Make, no_grace: None) -> None:
    library = make()
    await add(library, "style", lora_bytes(1))
    job = await use(library, "style")
    with library.holding([job]):
        await library.remove("style", "team")
    assert await make().remove_unwanted() == 1
    assert not job.path.exists()


async def test_a_command_beside_a_server_leaves_the_file_to_it(make: Make, others: list[str]) -> None:
    server = make()
    await add(server, "style", lora_bytes(1))
    job = await use(server, "style")
    others.append("the server")
    await make().remove("style", "team")
    assert job.path.is_file()
    others.clear()
    assert await make().remove_unwanted() == 1


async def test_a_file_that_was_added_again_before_it_went_stays(make: Make, no_grace: None) -> None:
    library = make()
    await add(library, "style", lora_bytes(1))
    job = await use(library, "style")
    with library.holding([job]):
        await library.remove("style", "team")
        await add(library, "again", lora_bytes(1), owner="another team")
    assert await library.remove_unwanted() == 0
    assert await library.remove_unwanted() == 0
    assert (await use(library, "again", "another team")).path == job.path
    assert job.path.is_file()


async def test_removing_a_copy_of_a_bundled_lora_leaves_those_who_use_the_bundled_one(
    make: Make, tmp_path: Path, no_grace: None
) -> None:
    bundled = write_lora(tmp_path / "flat.safetensors")
    (tmp_path / "bundled").mkdir()
    (tmp_path / "bundled" / "flat.json").write_text(json.dumps({}))
    bundled.rename(tmp_path / "bundled" / "flat.safetensors")
    library = make()
    job = await use(library, "flat", "third team")
    await add(library, "copy", (tmp_path / "bundled" / "flat.safetensors").read_bytes())
    with library.holding([job]):
        await library.remove("copy", "team")
        assert job.path.is_file()
    await library.remove_unwanted()
    assert (await use(library, "flat", "third team")).path.is_file()


async def test_an_add_that_is_refused_leaves_no_file_and_no_note(make: Make, tmp_path: Path) -> None:
    library = make()
    await add(library, "one", lora_bytes(1))
    found = await asyncio.gather(*(add(library, "two", lora_bytes(seed)) for seed in (2, 3)), return_exceptions=True)
    assert [type(each) for each in found if isinstance(each, BaseException)] == [ConflictError]
    kept = {lora.sha256 for lora in await library.added()}
    await library.remove_unwanted()
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == {f"{sha}.safetensors" for sha in kept}


async def test_adding_beside_a_removal_of_the_same_content_never_loses_the_file(make: Make, no_grace: None) -> None:
    library, data = make(), lora_bytes(1)

    async def churn(team: str) -> None:
        for turn in range(10):
            await add(library, f"style-{turn}", data, owner=team)
            assert (await use(library, f"style-{turn}", team)).path.is_file()
            await library.remove(f"style-{turn}", team)
            await library.remove_unwanted()

    await asyncio.gather(*(churn(f"team {number}") for number in range(4)))
