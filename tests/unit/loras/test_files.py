import asyncio
import io
import time
from pathlib import Path

import pytest

from lora_libraries import files_in
from mini_loras import write_lora
from schnell.adapters import FLUX_1, ModelShape, read_model_shape
from schnell.errors import AdapterError
from schnell.loras.files import AdapterFiles
from schnell.models.folder import embedded_home


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return read_model_shape(embedded_home() / "schnell-mini")


@pytest.fixture
def files(folder: Path, shape: ModelShape) -> AdapterFiles:
    return AdapterFiles(folder, shape, 10**7)


async def test_a_file_is_converted_once_and_found_by_its_hash(files: AdapterFiles, tmp_path: Path) -> None:
    source = write_lora(tmp_path / "a.safetensors", seed=1)
    first, again = await files.convert(source), await files.convert(source)
    assert first.sha256 == again.sha256
    assert await files.find(first.sha256) == first.path == files.path(first.sha256)
    assert files_in(files.folder) == [f"{first.sha256}.safetensors"]
    assert await files.find("0" * 64) is None


async def test_conversions_at_once_all_give_their_own_file(files: AdapterFiles, tmp_path: Path) -> None:
    sources = [write_lora(tmp_path / f"{seed}.safetensors", seed=seed % 3) for seed in range(9)]
    found = await asyncio.gather(*map(files.convert, sources))
    assert len({each.sha256 for each in found}) == 3
    assert files_in(files.folder) == sorted({f"{each.sha256}.safetensors" for each in found})


async def test_pefts_configuration_makes_another_file(files: AdapterFiles, tmp_path: Path) -> None:
    source = write_lora(tmp_path / "a.safetensors")
    plain, scaled = await files.convert(source), await files.convert(source, {"r": 2, "lora_alpha": 6})
    assert plain.sha256 != scaled.sha256


async def test_a_file_that_was_converted_for_another_model_is_refused_when_it_is_found(
    files: AdapterFiles, folder: Path, tmp_path: Path
) -> None:
    found = await files.convert(write_lora(tmp_path / "a.safetensors"))
    other = AdapterFiles(folder, FLUX_1, 10**7)
    for _ in range(2):
        with pytest.raises(AdapterError, match="does not fit"):
            await other.find(found.sha256)


async def test_a_file_above_the_limit_is_refused_and_nothing_stays(
    folder: Path, shape: ModelShape, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError):
        await AdapterFiles(folder, shape, 100).convert(write_lora(tmp_path / "a.safetensors"))
    assert files_in(folder) == []


async def test_removing_may_be_repeated(files: AdapterFiles, tmp_path: Path) -> None:
    found = await files.convert(write_lora(tmp_path / "a.safetensors"))
    for _ in range(2):
        files.remove(found.sha256)
    assert files_in(files.folder) == []
    assert await files.find(found.sha256) is None


async def test_uploads_are_copied_under_names_of_their_own(files: AdapterFiles) -> None:
    first, second = await files.receive(io.BytesIO(b"one")), await files.receive(io.BytesIO(b"two"))
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")
    assert first != second
    assert {first.parent, second.parent} == {files.folder}
    assert not {first.suffix, second.suffix} & {".safetensors"}


def test_a_file_may_be_removed_ten_minutes_after_its_last_use(files: AdapterFiles) -> None:
    assert not files.is_past_grace(time.time() - 590)
    assert files.is_past_grace(time.time() - 601)
